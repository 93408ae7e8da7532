"""Batches that outlive a kill: what was written is not done again, whatever is missing or damaged is, and the table is
the same. In a store: tests/storage/test_finished_batches.py."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from nlft_ray.config import ScoreConfig
from nlft_ray.errors import UserError
from nlft_ray.execution.work import isolate_failures
from nlft_ray.stages.score import job
from nlft_ray.stages.score.finished_batches import SECONDS_BETWEEN_WRITES, FinishedBatches
from nlft_ray.stages.score.scorer import ScoringBatch
from nlft_ray.stages.score.worker import ScoreWorker
from nlft_ray.storage.folder import Folder
from nlft_ray.tables.schema import EXAMPLES
from nlft_ray.tables.shards import UNFINISHED
from tests.stages.test_score import config, example


class _Killed(BaseException):
    pass


def shard(first: int, rows: int = 6) -> pa.Table:
    made = [
        dict.fromkeys(EXAMPLES.names) | example(f"{number}", correct=number % 2 == 0, question=f"{number} + {number}?")
        for number in range(first, first + rows)
    ]
    return pa.Table.from_pylist(made, schema=EXAMPLES)


class Scoring:
    """A worker whose batches, a row each, are counted, and which dies at one of them. Each batch is written, unless
    other seconds are named, before the next begins."""

    def __init__(self, model: str, folder: Path | str, dies_at: int | None = None, seconds: float = 0.0):
        settings: ScoreConfig = config(model, max_tokens_per_batch=1)
        self.finished = FinishedBatches(Folder(str(folder)), seconds)
        self.worker = ScoreWorker(settings, self.finished)
        self.batches: list[list[str]] = []
        score = self.worker._scorer.launch

        def counted(batch: ScoringBatch) -> Any:
            if len(self.batches) == dies_at:
                self.finished.wait()
                raise _Killed
            self.batches.append([row.id for row in batch.rows])
            if seconds == 0.0:
                self.finished.wait()
            return score(batch)

        self.worker._scorer.launch = counted  # type: ignore[method-assign]


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.parquet"))


@pytest.fixture
def undisturbed(random_llama: str) -> pa.Table:
    return ScoreWorker(config(random_llama, max_tokens_per_batch=1))(shard(0), 0).table


@pytest.mark.parametrize("dies_at", [0, 1, 4, 5])
def test_a_killed_worker_costs_the_batch_that_it_was_at(
    random_llama: str, tmp_path: Path, undisturbed: pa.Table, dies_at: int
) -> None:
    with pytest.raises(_Killed):
        Scoring(random_llama, tmp_path, dies_at).worker(shard(0), 0)
    again = Scoring(random_llama, tmp_path)
    worked = again.worker(shard(0), 0)
    assert worked.table.equals(undisturbed)
    assert again.batches == [[str(number)] for number in range(dies_at, 6)]
    assert worked.counts == ScoreWorker(config(random_llama, max_tokens_per_batch=1))(shard(0), 0).counts


def test_several_batches_stand_in_a_file(random_llama: str, tmp_path: Path, undisturbed: pa.Table) -> None:
    scoring = Scoring(random_llama, tmp_path, dies_at=5, seconds=1e9)
    write_when_due = scoring.finished.write_when_due

    def due_at_the_last() -> None:
        scoring.finished._seconds = 0.0 if len(scoring.batches) == 5 else 1e9
        write_when_due()

    scoring.finished.write_when_due = due_at_the_last  # type: ignore[method-assign]
    with pytest.raises(_Killed):
        scoring.worker(shard(0), 0)
    assert len(files(tmp_path)) == 1
    again = Scoring(random_llama, tmp_path)
    assert again.worker(shard(0), 0).table.equals(undisturbed)
    assert again.batches == [["5"]]


def test_a_shard_that_is_done_soon_writes_nothing(random_llama: str, tmp_path: Path) -> None:
    Scoring(random_llama, tmp_path, seconds=SECONDS_BETWEEN_WRITES).worker(shard(0), 0)
    assert list(tmp_path.iterdir()) == []


def test_padded_batches_are_written_too(random_llama: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nlft_ray.stages.score.scorer.start_packing", lambda model: False)
    with pytest.raises(_Killed):
        Scoring(random_llama, tmp_path / "kept", dies_at=3).worker(shard(0), 0)
    again, undisturbed = Scoring(random_llama, tmp_path / "kept"), Scoring(random_llama, tmp_path / "other")
    assert again.worker(shard(0), 0).table.equals(undisturbed.worker(shard(0), 0).table)
    assert again.batches == undisturbed.batches[3:]
    assert len(undisturbed.batches) == 6


def test_damaged_batches_are_done_again(random_llama: str, tmp_path: Path, undisturbed: pa.Table) -> None:
    with pytest.raises(_Killed):
        Scoring(random_llama, tmp_path, dies_at=5).worker(shard(0), 0)
    cut, empty, foreign, half, _ = files(tmp_path)
    cut.write_bytes(cut.read_bytes()[:-50])
    empty.write_bytes(b"")
    Folder(str(foreign.parent)).write_table(foreign.name, pa.table({"id": ["0"]}))
    half.rename(half.with_name(f".{half.name}.{'0' * 32}"))
    again = Scoring(random_llama, tmp_path)
    assert again.worker(shard(0), 0).table.equals(undisturbed)
    assert len(again.batches) == 5


def test_rows_that_changed_are_scored_anew(random_llama: str, tmp_path: Path) -> None:
    with pytest.raises(_Killed):
        Scoring(random_llama, tmp_path, dies_at=3).worker(shard(0), 0)
    rows = shard(0).to_pylist()
    rows[1]["response"] = "another one"
    changed = pa.Table.from_pylist(rows, schema=EXAMPLES)
    again = Scoring(random_llama, tmp_path)
    table = again.worker(changed, 0).table
    assert again.batches == [["1"], ["3"], ["4"], ["5"]]
    assert table.equals(ScoreWorker(config(random_llama, max_tokens_per_batch=1))(changed, 0).table)


def test_batches_go_when_their_shard_is_done(random_llama: str, tmp_path: Path) -> None:
    scoring = Scoring(random_llama, tmp_path)
    scoring.worker(shard(0), 0)
    first = files(tmp_path)
    scoring.worker(shard(6), 0)
    second = files(tmp_path)
    assert len(first) == len(second) == 5, "the last batch of a shard needs no file: the shard's follows"
    assert len({path.parent for path in first}) == len({path.parent for path in second}) == 1
    assert first[0].parent != second[0].parent
    scoring.worker(shard(12, rows=1), 0)
    assert list(tmp_path.iterdir()) == []


def test_a_row_that_raises_makes_its_neighbours_run_once(random_llama: str, tmp_path: Path) -> None:
    rows = shard(0, rows=8).to_pylist()
    rows[5]["response_ids"] = [1_000_000]
    table = pa.Table.from_pylist(rows, schema=EXAMPLES)
    scoring = Scoring(random_llama, tmp_path)
    worked = isolate_failures(scoring.worker, table, 0)
    assert [row["id"] for row, _ in worked.rejects] == ["5"]
    batches = [row for (row,) in scoring.batches if row != "5"]
    assert sorted(batches) == ["0", "1", "2", "3", "4", "6", "7"]
    again = Scoring(random_llama, tmp_path)
    assert isolate_failures(again.worker, table, 0).table.equals(worked.table)
    assert {row for (row,) in again.batches} <= {"5", "7"}, "those of a part of the shard are there too"


def test_nothing_is_being_written_when_a_row_has_raised(random_llama: str, tmp_path: Path) -> None:
    """The last row of the last shard: the stage removes the folder next."""
    rows = shard(0, rows=4).to_pylist()
    scoring = Scoring(random_llama, tmp_path, seconds=1e-9)
    launch = scoring.worker._scorer.launch

    def raising(batch: ScoringBatch) -> Any:
        if any(row.id == "3" for row in batch.rows):
            raise RuntimeError("a row that the model cannot bear")
        return launch(batch)

    scoring.worker._scorer.launch = raising  # type: ignore[method-assign]
    writing: list[bool] = []
    call = scoring.worker.__call__

    def watched(table: pa.Table, seed: int) -> Any:
        try:
            return call(table, seed)
        finally:
            writing.append(scoring.finished._writing is not None)

    watched.schema = scoring.worker.schema  # type: ignore[attr-defined]
    worked = isolate_failures(watched, pa.Table.from_pylist(rows, schema=EXAMPLES), 0)  # type: ignore[arg-type]
    assert [row["id"] for row, _ in worked.rejects] == ["3"]
    assert len(writing) == 5
    assert not any(writing)


def test_what_cannot_be_written_is_a_message_and_no_rows_fault(random_llama: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    scoring = Scoring(random_llama, tmp_path / "file")
    with pytest.raises(UserError, match=r"cannot be written.*Run the same command again"):
        isolate_failures(scoring.worker, shard(0), 0)


def test_the_stage_keeps_batches_beside_its_table(random_llama: str, tmp_path: Path) -> None:
    worker = job._make_worker(config(random_llama, output=str(tmp_path)))
    assert isinstance(worker, ScoreWorker)
    assert worker._finished is not None
    assert worker._finished._folder == Folder(str(tmp_path)) / UNFINISHED


_KILLED_AT = """
import os, signal, sys
from pathlib import Path
from tests.stages.test_finished_batches import Scoring, shard
scoring = Scoring(sys.argv[1], sys.argv[2], seconds=0.01)
score = scoring.worker._scorer.launch
def killing(batch):
    if len(scoring.batches) == 20:
        os.kill(os.getpid(), signal.SIGKILL)
    return score(batch)
scoring.worker._scorer.launch = killing
scoring.worker(shard(0, 30), 0)
"""


@pytest.mark.system
def test_a_killed_process_leaves_its_batches(random_llama: str, tmp_path: Path) -> None:
    """In the middle of whatever it was writing."""
    words = [sys.executable, "-c", _KILLED_AT, random_llama, str(tmp_path)]
    assert subprocess.run(words, cwd=Path(__file__).parents[2]).returncode < 0
    again = Scoring(random_llama, tmp_path)
    table = again.worker(shard(0, 30), 0).table
    assert table.equals(ScoreWorker(config(random_llama, max_tokens_per_batch=1))(shard(0, 30), 0).table)
    assert 10 <= len(again.batches) < 30
    again.worker(shard(100, 1), 0)
    assert list(tmp_path.iterdir()) == [], "half files went with their folder"
