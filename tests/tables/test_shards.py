"""Shards cover the input exactly once, whatever the files, and a row that raises costs only itself."""

from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nlft_ray.errors import UserError
from nlft_ray.storage.folder import Folder
from nlft_ray.tables.schema import QUESTIONS
from nlft_ray.tables.shards import Shard, Worked, finished_shard, plan_shards, read_shard, work_shard
from tests.rows import QUESTION, read_rejects, read_table, write_table


class Doubter:
    """Passes rows on, and raises on those it is told to."""

    schema = QUESTIONS

    def __init__(self, *bad: str, error: type[Exception] = RuntimeError):
        self.bad, self.error = bad, error

    def __call__(self, table: pa.Table, seed: int) -> Worked:
        for row in table.to_pylist():
            if row["id"] in self.bad:
                raise self.error(f"cannot bear {row['id']}")
        return Worked(table, counts={"seen": table.num_rows})


def questions(count: int) -> list[dict[str, str]]:
    return [{"id": str(number), **QUESTION} for number in range(count)]


@given(
    count=st.integers(0, 200), rows_per_file=st.integers(1, 70), rows_per_shard=st.one_of(st.none(), st.integers(1, 90))
)
def test_shards_cover_every_row_once(
    tmp_path_factory: pytest.TempPathFactory, count: int, rows_per_file: int, rows_per_shard: int | None
) -> None:
    source = Folder(write_table(tmp_path_factory.mktemp("t"), "questions", questions(count), rows_per_file))
    shards = plan_shards(source, rows_per_shard)
    assert [shard.number for shard in shards] == list(range(len(shards)))
    found = [row["id"] for shard in shards for row in read_shard(source, shard).to_pylist()]
    assert found == [str(number) for number in range(count)]


def test_a_row_that_raises_is_rejected_alone(tmp_path: Path) -> None:
    source = Folder(write_table(tmp_path / "in", "questions", questions(20)))
    output = Folder(str(tmp_path / "out"))
    report = work_shard(Doubter("3", "17"), source, output, Shard(0, "part-000000.parquet", 0, 20), "score", seed=0)
    assert (report.rows_in, report.rows_out, report.reject_reasons) == (20, 18, {"raised RuntimeError": 2})
    assert report.counts == {"seen": 18}
    assert sorted(read_table(output.uri)) == sorted(str(number) for number in range(20) if number not in (3, 17))
    assert [(row["id"], row["reason"]) for row in read_rejects(output.uri)] == [
        ("3", "raised RuntimeError: cannot bear 3"),
        ("17", "raised RuntimeError: cannot bear 17"),
    ]


def test_a_users_mistake_is_not_a_bad_row(tmp_path: Path) -> None:
    source = Folder(write_table(tmp_path / "in", "questions", questions(4)))
    with pytest.raises(UserError):
        work_shard(
            Doubter("1", error=UserError),
            source,
            Folder(str(tmp_path / "out")),
            Shard(0, "part-000000.parquet", 0, 4),
            "score",
            seed=0,
        )


@pytest.mark.parametrize("damage", ["absent", "empty", "truncated", "foreign", "other range"])
def test_only_a_whole_file_of_this_shard_counts_as_done(tmp_path: Path, damage: str) -> None:
    source = Folder(write_table(tmp_path / "in", "questions", questions(8)))
    output, shard = Folder(str(tmp_path / "out")), Shard(0, "part-000000.parquet", 0, 8)
    report = work_shard(Doubter(), source, output, shard, "score", seed=0)
    assert finished_shard(output, shard) == report
    file = tmp_path / "out" / "data" / shard.name
    if damage == "absent":
        file.unlink()
    elif damage == "empty":
        file.write_bytes(b"")
    elif damage == "truncated":
        file.write_bytes(file.read_bytes()[:-40])
    elif damage == "foreign":
        (output / "data").write_table(shard.name, pa.table({"a": [1]}))
    else:
        shard = Shard(0, shard.file, 0, 6)
    assert finished_shard(output, shard) is None
