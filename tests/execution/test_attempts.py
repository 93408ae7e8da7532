"""Processes that die at a shard: another does it, three times at most."""

import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from nlft_ray.config import SampleConfig
from nlft_ray.errors import UserError
from nlft_ray.execution.attempts import Attempts
from nlft_ray.execution.inline import InlineExecutor
from nlft_ray.execution.ray_actors import RayExecutor
from nlft_ray.execution.work import TableWork, WorkResult
from nlft_ray.storage.folder import Folder
from nlft_ray.tables.schema import QUESTIONS
from nlft_ray.tables.shards import Shard
from tests.rows import QUESTION, read_table, write_table

SHARD = Shard(7, "part-000000.parquet", 10, 20)


def test_the_fourth_beginning_ends_the_command_and_says_why(tmp_path: Path) -> None:
    attempts = Attempts(Folder(str(tmp_path)), "start")
    for attempt in range(3):
        attempts.begin("score", SHARD)
        if attempt == 1:
            attempts.failed(SHARD, "on node a: CUDA error: ECC")
    with pytest.raises(UserError, match=r"3 processes died at shard .*, rows 11 to 20 of .*CUDA error: ECC"):
        attempts.begin("score", SHARD)
    attempts.begin("score", Shard(8, SHARD.file, 20, 30))
    Attempts(Folder(str(tmp_path)), "another start").begin("score", SHARD)


class Dying:
    """Passes rows on; its device fails at those named `bad`, or at `once` the first time only. `gone` just dies."""

    schema = QUESTIONS

    def __init__(self, config: SampleConfig):
        self._seen = Path(config.output) / "seen"

    def __call__(self, table: pa.Table, seed: int) -> WorkResult:
        ids = table.column("id").to_pylist()
        first = not self._seen.exists()
        if ("once" in ids and first) or "bad" in ids:
            self._seen.touch()
            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
        if "gone" in ids:
            os._exit(1)
        return WorkResult(table)


def work_on(tmp_path: Path, *ids: str) -> tuple[TableWork, list[Shard]]:
    source = write_table(tmp_path / "in", "questions", [{**QUESTION, "id": id} for id in ids])
    settings: dict[str, Any] = {"input": source, "output": str(tmp_path / "out"), "model": {"path": "none"}}
    config = SampleConfig.model_validate(settings | {"pool": {"max_workers": 1, "gpus_per_worker": 0}})
    (tmp_path / "out").mkdir()
    work = TableWork("sample", Dying, config, Folder(config.input), Folder(config.output))
    return work, [Shard(number, "part-000000.parquet", number, number + 1) for number in range(len(ids))]


@pytest.mark.usefixtures("ray_local")
def test_a_shard_at_which_the_device_failed_is_done_by_another_process(tmp_path: Path) -> None:
    work, shards = work_on(tmp_path, "1", "once", "2")
    reports = list(RayExecutor(None).map_shards(work, shards))
    assert sorted(report.number for report in reports) == [0, 1, 2]
    assert all(report.rows_out == 1 and not report.reject_reasons for report in reports)
    assert sorted(read_table(work.output.uri)) == ["1", "2", "once"]


@pytest.mark.usefixtures("ray_local")
@pytest.mark.parametrize(("id", "reason"), [("bad", "illegal memory access"), ("gone", "none could say why")])
def test_a_shard_whose_processes_keep_dying_ends_the_command(id: str, reason: str, tmp_path: Path) -> None:
    work, shards = work_on(tmp_path, "1", id)
    with pytest.raises(UserError, match=rf"3 processes died at shard .* rows 2 to 2 of part-000000.parquet.*{reason}"):
        list(RayExecutor(None).map_shards(work, shards))


def test_in_this_process_a_failed_device_ends_the_command(tmp_path: Path) -> None:
    work, shards = work_on(tmp_path, "1", "bad")
    with pytest.raises(UserError, match=r"the device failed at shard .* Run the same command again"):
        list(InlineExecutor().map_shards(work, shards))
