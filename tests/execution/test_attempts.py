"""Processes that die at a shard: another does it, three times at most."""

import os
from dataclasses import replace
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
    attempts = Attempts(Folder(str(tmp_path)), "score", "start")
    for attempt in range(3):
        attempts.begin(SHARD)
        if attempt == 1:
            attempts.failed(SHARD, "on node a: CUDA error: ECC")
    with pytest.raises(UserError, match=r"3 processes died at shard .*, rows 11 to 20 of .*CUDA error: ECC"):
        attempts.begin(SHARD)
    attempts.begin(Shard(8, SHARD.file, 20, 30))
    Attempts(Folder(str(tmp_path)), "score", "another start").begin(SHARD)


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


@pytest.mark.system
@pytest.mark.usefixtures("ray_local")
@pytest.mark.parametrize(("id", "reason"), [("bad", "illegal memory access"), ("gone", "none could say why")])
def test_a_shard_whose_processes_keep_dying_ends_the_command(id: str, reason: str, tmp_path: Path) -> None:
    work, shards = work_on(tmp_path, "1", id)
    with pytest.raises(UserError, match=rf"3 processes died at shard .* rows 2 to 2 of part-000000.parquet.*{reason}"):
        list(RayExecutor(None).map_shards(work, shards))


class DyingWhileLoading(Dying):
    """Dies in its first starts: as many as the model's length says."""

    def __init__(self, config: SampleConfig):
        super().__init__(config)
        starts = Path(config.output) / "starts"
        starts.mkdir(exist_ok=True)
        if len(list(starts.iterdir())) < (config.model.max_length or 0):
            (starts / str(os.getpid())).touch()
            os._exit(1)


@pytest.mark.system
@pytest.mark.usefixtures("ray_local")
def test_a_process_that_dies_while_it_loads_is_replaced_three_times(tmp_path: Path) -> None:
    work, shards = work_on(tmp_path, "1", "2")
    work = replace(work, make_worker=DyingWhileLoading)
    model = work.config.model
    config = work.config.model_copy(update={"model": model.model_copy(update={"max_length": 3})})
    assert len(list(RayExecutor(None).map_shards(replace(work, config=config), shards))) == 2
    config = work.config.model_copy(update={"model": model.model_copy(update={"max_length": 99})})
    with pytest.raises(UserError, match="4 processes in a row died while they loaded the model"):
        list(RayExecutor(None).map_shards(replace(work, config=config, start="second"), shards))


def test_in_this_process_a_failed_device_ends_the_command(tmp_path: Path) -> None:
    work, shards = work_on(tmp_path, "1", "bad")
    with pytest.raises(UserError, match=r"the device failed at shard .* Run the same command again"):
        list(InlineExecutor().map_shards(work, shards))
