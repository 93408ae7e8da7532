"""What is done of a shard survives whoever did it: no batch runs again that was kept, and nothing else differs."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from nlft_ray.config import ScoreConfig
from nlft_ray.stages.score.kept import KeptBatches
from nlft_ray.stages.score.scorer import Batch
from nlft_ray.stages.score.worker import ScoreWorker
from nlft_ray.storage.folder import Folder
from nlft_ray.tables.schema import EXAMPLES
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
    """A worker whose batches, a row each, are counted, and which dies at one of them."""

    def __init__(self, model: str, folder: Path, dies_at: int | None = None):
        settings: ScoreConfig = config(model, max_tokens_per_batch=1)
        self.worker = ScoreWorker(settings, KeptBatches(Folder(str(folder))))
        self.batches: list[list[str]] = []
        score = self.worker._scorer.score

        def counted(batch: Batch) -> Any:
            if len(self.batches) == dies_at:
                raise _Killed
            self.batches.append([row.id for row in batch.rows])
            return score(batch)

        self.worker._scorer.score = counted  # type: ignore[method-assign]


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
    assert again.worker(shard(0), 0).table.equals(undisturbed)
    assert again.batches == [[str(number)] for number in range(dies_at, 6)]


def test_padded_batches_are_kept_too(random_llama: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nlft_ray.stages.score.scorer.takes_trees", lambda model: False)
    with pytest.raises(_Killed):
        Scoring(random_llama, tmp_path / "kept", dies_at=3).worker(shard(0), 0)
    again, undisturbed = Scoring(random_llama, tmp_path / "kept"), Scoring(random_llama, tmp_path / "other")
    assert again.worker(shard(0), 0).table.equals(undisturbed.worker(shard(0), 0).table)
    assert again.batches == undisturbed.batches[3:]
    assert len(undisturbed.batches) == 6


def test_a_damaged_batch_is_done_again(random_llama: str, tmp_path: Path, undisturbed: pa.Table) -> None:
    with pytest.raises(_Killed):
        Scoring(random_llama, tmp_path, dies_at=3).worker(shard(0), 0)
    files = sorted(tmp_path.iterdir())
    assert len(files) == 3
    files[0].write_bytes(files[0].read_bytes()[:-50])
    files[1].write_bytes(b"")
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
    found = again.worker(changed, 0).table
    assert again.batches == [["1"], ["3"], ["4"], ["5"]]
    assert found.equals(ScoreWorker(config(random_llama, max_tokens_per_batch=1))(changed, 0).table)


def test_what_is_kept_goes_when_its_shard_is_done(random_llama: str, tmp_path: Path) -> None:
    scoring = Scoring(random_llama, tmp_path)
    scoring.worker(shard(0), 0)
    first = {path.name for path in tmp_path.iterdir()}
    scoring.worker(shard(6), 0)
    second = {path.name for path in tmp_path.iterdir()}
    assert len(first) == len(second) == 5, "the last batch of a shard needs no file: the shard's follows"
    assert not first & second
    scoring.worker(shard(12, rows=1), 0)
    assert list(tmp_path.iterdir()) == []
