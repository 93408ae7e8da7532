"""Shards cover the input exactly once, whatever the files, and a row that raises costs only itself."""

from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nlft_ray.storage.folder import Folder
from nlft_ray.tables.shards import (
    Shard,
    ShardReport,
    commit_shard,
    finished_shard,
    plan_shards,
    read_shard,
    rejects_table,
)
from tests.rows import QUESTION, write_table


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


@pytest.mark.parametrize("damage", ["absent", "empty", "truncated", "foreign", "other range"])
def test_only_a_whole_file_of_this_shard_counts_as_done(tmp_path: Path, damage: str) -> None:
    source = Folder(write_table(tmp_path / "in", "questions", questions(8)))
    output, shard = Folder(str(tmp_path / "out")), Shard(0, "part-000000.parquet", 0, 8)
    table = read_shard(source, shard)
    report = ShardReport(0, 8, 8, {}, tokens=0, seconds=0.1, counts={}, set_aside_reasons={}, plan="", ids="")
    commit_shard(output, shard, report, table, rejects_table("score", []))
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
