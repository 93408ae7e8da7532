"""A shard's work: rows that raise are rejected alone, mistakes of the user are none of theirs, seeds differ."""

from pathlib import Path

import pyarrow as pa
import pytest
import torch

from nlft_ray.errors import UserError
from nlft_ray.execution.work import DeviceFailed, WorkResult, shard_seed
from nlft_ray.storage.folder import Folder
from nlft_ray.tables.schema import QUESTIONS
from nlft_ray.tables.shards import Shard
from tests.rows import QUESTION, read_rejects, read_table, work_on, write_table


class Doubter:
    """Passes rows on, and raises on those it is told to."""

    schema = QUESTIONS

    def __init__(self, *bad: str, error: type[Exception] = RuntimeError):
        self.bad, self.error = bad, error

    def __call__(self, table: pa.Table, seed: int) -> WorkResult:
        for row in table.to_pylist():
            if row["id"] in self.bad:
                raise self.error(f"cannot bear {row['id']}")
        return WorkResult(table, counts={"seen": table.num_rows})


def questions(folder: Path, count: int) -> Folder:
    return Folder(write_table(folder, "questions", [{"id": str(number), **QUESTION} for number in range(count)]))


def test_a_row_that_raises_is_rejected_alone(tmp_path: Path) -> None:
    source, output = questions(tmp_path / "in", 20), Folder(str(tmp_path / "out"))
    report = work_on(Doubter("3", "17"), source, output, Shard(0, "part-000000.parquet", 0, 20))
    assert (report.rows_in, report.rows_out, report.reject_reasons) == (20, 18, {"raised RuntimeError": 2})
    assert report.counts == {"seen": 18}
    assert sorted(read_table(output.uri)) == sorted(str(number) for number in range(20) if number not in (3, 17))
    assert [(row["id"], row["reason"]) for row in read_rejects(output.uri)] == [
        ("3", "raised RuntimeError: cannot bear 3"),
        ("17", "raised RuntimeError: cannot bear 17"),
    ]


def test_a_users_mistake_is_not_a_bad_row(tmp_path: Path) -> None:
    source, output = questions(tmp_path / "in", 4), Folder(str(tmp_path / "out"))
    with pytest.raises(UserError):
        work_on(Doubter("1", error=UserError), source, output, Shard(0, "part-000000.parquet", 0, 4))
    assert not output.exists()


def test_a_shards_seed_is_its_own_and_the_same_each_time() -> None:
    seeds = [shard_seed(seed, number) for seed in (0, 1, 7) for number in range(100)]
    assert len(set(seeds)) == 300
    assert seeds == [shard_seed(seed, number) for seed in (0, 1, 7) for number in range(100)]


def test_memory_that_ran_out_is_no_bad_row(tmp_path: Path) -> None:
    source, output = questions(tmp_path / "in", 4), Folder(str(tmp_path / "out"))
    with pytest.raises(UserError, match=r"out of memory: cannot bear 1\. Take model.dtype=bfloat16"):
        work_on(Doubter("1", error=torch.OutOfMemoryError), source, output, Shard(0, "part-000000.parquet", 0, 4))
    assert not output.exists()


def test_a_device_that_failed_is_no_bad_row(tmp_path: Path) -> None:
    source, output = questions(tmp_path / "in", 4), Folder(str(tmp_path / "out"))
    with pytest.raises(DeviceFailed, match="AcceleratorError: cannot bear 1"):
        work_on(Doubter("1", error=torch.AcceleratorError), source, output, Shard(0, "part-000000.parquet", 0, 4))
    assert not output.exists()
