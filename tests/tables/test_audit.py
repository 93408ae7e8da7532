"""The audit finds every way in which a row can be lost or doubled, and names the ids."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from nlft_ray.errors import UserError
from nlft_ray.execution.work import WorkResult
from nlft_ray.storage.folder import Folder
from nlft_ray.tables import audit
from nlft_ray.tables.audit import check_shard, digests_of_ids
from nlft_ray.tables.schema import QUESTIONS
from nlft_ray.tables.shards import (
    Shard,
    finished_shard,
    input_ids,
    plan_shards,
    remove_strays,
)
from tests.rows import QUESTION, read_rejects, read_table, work_on, write_table

IDS = ["a", "b", "c"]


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (["a", "c"], "1 lost: 'b'"),
        (["a", "b", "b", "c"], "1 there twice: 'b'"),
        (["a", "b", "c", "d"], "1 not from the input: 'd'"),
        (["a", "d", "d"], "2 lost: 'b', 'c'; 1 there twice: 'd'; 1 not from the input: 'd'"),
        ([], "3 lost"),
    ],
)
def test_lost_doubled_and_invented_ids_are_named(made: list[str], message: str) -> None:
    check_shard("score, part-000001.parquet", IDS, ["c", "a", "b"], draws=1)
    with pytest.raises(UserError, match=rf"part-000001.*{message}"):
        check_shard("score, part-000001.parquet", IDS, made, draws=1)


def test_draws_are_counted_and_a_question_may_be_rejected_before() -> None:
    check_shard("s", ["a", "b"], ["a/0", "a/1", "b"], draws=2)
    check_shard("s", ["a", "a/0"], ["a/0", "a/1", "a/0/0", "a/0/1"], draws=2)
    with pytest.raises(UserError, match="1 lost: 'a'; 1 not from the input: 'a/0'"):
        check_shard("s", ["a", "b"], ["a/0", "b/0", "b/1"], draws=2)


class Careless:
    """Passes on what `slip` leaves of the rows."""

    schema = QUESTIONS

    def __init__(self, slip: Callable[[list[Any]], list[Any]]):
        self._slip = slip

    def __call__(self, table: pa.Table, seed: int) -> WorkResult:
        rows = table.to_pylist()
        return WorkResult(pa.Table.from_pylist(self._slip(rows), schema=QUESTIONS), [(row, "bad") for row in rows[:1]])


def questions(folder: Path, ids: list[str], rows_per_file: int = 1000) -> Folder:
    return Folder(write_table(folder, "questions", [{"id": id, **QUESTION} for id in ids], rows_per_file))


@pytest.mark.parametrize("slip", [lambda rows: rows, lambda rows: rows[2:], lambda rows: [*rows[1:], rows[1]]])
def test_nothing_of_a_shard_that_fails_the_audit_is_written(tmp_path: Path, slip: Any) -> None:
    source, output = questions(tmp_path / "in", IDS), Folder(str(tmp_path / "out"))
    with pytest.raises(UserError, match="the audit of ids failed"):
        work_on(Careless(slip), source, output, Shard(0, "part-000000.parquet", 0, 3))
    assert not output.exists()


def test_an_id_in_two_files_of_the_input_is_named(tmp_path: Path) -> None:
    source = questions(tmp_path / "in", ["a", "b", "c", "d", "b"], rows_per_file=2)
    with pytest.raises(UserError, match="1 ids stand in more than one row: 'b'"):
        input_ids(source, plan_shards(source, 2))


def test_equal_hashes_are_no_equal_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "hash", lambda id: len(id), raising=False)
    found = digests_of_ids(lambda: [(0, ["aa", "bb"]), (1, ["cc"]), (2, [])])
    assert len(set(found.values())) == 3
    with pytest.raises(UserError, match="1 ids stand in more than one row: 'bb'"):
        digests_of_ids(lambda: [(0, ["aa", "bb"]), (1, ["bb"])])


def test_rejects_of_an_earlier_try_do_not_stay(tmp_path: Path) -> None:
    """A first try rejects a row and is killed before it commits its data; the second one bears the row."""
    source, output = questions(tmp_path / "in", IDS), Folder(str(tmp_path / "out"))
    shard = Shard(0, "part-000000.parquet", 0, 3)
    work_on(Careless(lambda rows: rows[1:]), source, output, shard)
    (output / "data").delete(shard.name)
    assert len(read_rejects(output.uri)) == 1

    class Careful(Careless):
        def __call__(self, table: pa.Table, seed: int) -> WorkResult:
            return WorkResult(table)

    work_on(Careful(list), source, output, shard)
    assert read_rejects(output.uri) == []
    assert sorted(read_table(output.uri)) == IDS


@pytest.mark.parametrize("damage", [lambda file: file.unlink(), lambda file: file.write_bytes(b"PAR1")])
def test_a_shard_without_its_rejects_is_not_done(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    source, output = questions(tmp_path / "in", IDS), Folder(str(tmp_path / "out"))
    shard = Shard(0, "part-000000.parquet", 0, 3)
    report = work_on(Careless(lambda rows: rows[1:]), source, output, shard)
    assert finished_shard(output, shard) == report
    damage(tmp_path / "out" / "rejects" / shard.name)
    assert finished_shard(output, shard) is None


def test_files_of_another_plan_do_not_count_and_go(tmp_path: Path) -> None:
    source, output = questions(tmp_path / "in", IDS), Folder(str(tmp_path / "out"))
    old, new = plan_shards(source, 1, "old"), plan_shards(source, 2, "new")
    for shard in old:
        work_on(Careless(lambda rows: []), source, output, shard)
    assert [finished_shard(output, shard) for shard in new] == [None, None]
    (tmp_path / "out" / "data" / f".part-000001.parquet.{'0' * 32}").write_bytes(b"half")
    assert remove_strays(output, new) == 2
    kept = sorted(path.name for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert kept == ["part-000000.parquet", "part-000000.parquet", "part-000001.parquet", "part-000001.parquet"]
