"""Training under a real local Ray: killed workers, repeated starts, mistakes of the user."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import torch
import yaml
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError
from ray.train.v2.api.exceptions import WorkerGroupError
from safetensors.torch import load_file

from nlft_ray.config import TrainConfig
from nlft_ray.errors import UserError
from nlft_ray.execution import ray_workers
from nlft_ray.stages.train.job import train
from nlft_ray.tables.manifest import Manifest
from nlft_ray.tables.schema import TABLES
from tests.rows import read_rejects, write_table
from tests.stages.train import support, workers

pytestmark = pytest.mark.usefixtures("ray_local", "process_group", "one_thread")


def is_worker(process: psutil.Process) -> bool:
    try:
        return "RayTrainWorker" in " ".join(process.cmdline())
    except psutil.Error:  # it is gone, or about to go
        return False


@contextmanager
def a_worker_killed_when(reached: Callable[[], bool]) -> Iterator[None]:
    """Kill one training worker as soon as something is reached."""
    over = threading.Event()

    def kill() -> None:
        while not reached() and not over.wait(0.02):
            pass
        for process in [found for found in psutil.Process().children(recursive=True) if is_worker(found)][-1:]:
            os.kill(process.pid, signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def record_of_a_killed_driver(config: TrainConfig, step: int, tmp_path: Path) -> list[dict[str, Any]]:
    """Start a command on this cluster and kill it at a step. Its workers may live on for a while."""
    settings = tmp_path / "train.yaml"
    settings.write_text(yaml.safe_dump(config.model_dump(mode="json", exclude_defaults=True)))
    command = [sys.executable, "-m", "nlft_ray", "train", "--config", str(settings)]
    address = ray.get_runtime_context().gcs_address
    with (tmp_path / "said.txt").open("w+") as said:
        driver = subprocess.Popen(
            command, env=os.environ | {"RAY_ADDRESS": address, "RAY_AUTH_MODE": "token"}, stdout=said, stderr=said
        )
        while len(record := support.record(config.output)) < step:
            assert driver.poll() is None, (tmp_path / "said.txt").read_text()
            time.sleep(0.02)
        driver.kill()
        driver.wait()
    return record


def test_killed_and_started_again_it_ends_as_if_nothing_had_happened(
    model: str, scored: str, tmp_path: Path, two_workers: workers.Group, capsys: pytest.CaptureFixture[str]
) -> None:
    settings: dict[str, Any] = {
        "num_workers": 2,
        "zero_stage": 2,
        "batch_size": 2,
        "epochs": 10,
        "checkpoint_every_steps": 7,
        "lora": {"dropout": 0.2},
    }
    output = tmp_path / "out"
    before = record_of_a_killed_driver(support.train_config(model, scored, output, **settings), 20, tmp_path)
    assert 20 <= len(before) < 60
    began = time.monotonic()
    with a_worker_killed_when(lambda: len(support.record(output)) >= 40):
        result = train(support.train_config(model, scored, output, **settings, max_failures=2))
    said = capsys.readouterr().err
    assert re.search(r"goes on after step \d+ of 60", said)
    assert re.search(r"(lost worker \d|worker \d failed: .*); going on from the newest checkpoint", said)
    after = support.record(output)
    assert [line["step"] for line in after] == list(range(1, 61))
    assert after[:7] == before[:7]  # kept, not taken again
    assert result.manifest.counts["steps"] == 60
    assert result.manifest.counts["final_loss"] == after[-1]["loss"]
    assert result.manifest.seconds > sum(line["seconds"] for line in after[:7])
    assert result.manifest.seconds < time.monotonic() - began + sum(line["seconds"] for line in before)

    undisturbed = support.train_config(model, scored, tmp_path / "whole", **settings)
    two_workers.do(workers.train_in, undisturbed, tmp_path / "checkpoints")
    tensors = [load_file(folder / "weights" / "adapter_model.safetensors") for folder in (output, tmp_path / "whole")]
    assert tensors[0].keys() == tensors[1].keys()
    assert all(torch.equal(tensor, tensors[1][name]) for name, tensor in tensors[0].items())

    again = train(support.train_config(model, scored, output, **settings, micro_batch_size_per_worker=3))
    assert again.reused
    assert again.manifest == result.manifest
    with pytest.raises(UserError, match=r"config.learning_rate: 0.01 → 0.02"):
        train(support.train_config(model, scored, output, **settings, learning_rate=0.02))


def test_the_last_lost_worker_is_told_in_a_line(model: str, scored: str) -> None:
    lost = WorkerGroupError("", {1: WorkerHealthCheckFailedError("", RuntimeError("it is gone"))})
    told = ray_workers._user_error_or_itself(lost, support.train_config(model, scored, "out", max_failures=2))
    assert isinstance(told, UserError)
    assert re.search(r"worker 1 was lost.*max_failures=2.*same command again", str(told))


def test_what_was_weighed_and_left_out_is_in_the_manifest(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The paths are relative: workers must find them too."""
    monkeypatch.chdir(tmp_path)
    Path("model").symlink_to(model)
    rows = [row | {"standard_ids": None} if number == 2 else row for number, row in enumerate(support.scored_rows())]
    support.save_scored(tmp_path / "table", model, rows)
    config = support.train_config("model", "table", "out", policy="sft", epochs=1, max_reject_fraction=0.1)
    result = train(config)
    manifest = Manifest.model_validate_json((tmp_path / "out" / "manifest.json").read_text())
    assert manifest == result.manifest
    assert (manifest.rows_in, manifest.rows_out, manifest.rows_rejected) == (11, 10, 1)
    assert (manifest.counts["correct"], manifest.counts["incorrect"]) == (5, 5)
    assert [row["id"] for row in read_rejects(tmp_path / "out")] == ["row-002"]
    assert "learning_rate" in manifest.identity.config
    assert not {"prompts", "max_failures", "num_workers", "zero_stage"} & manifest.identity.config.keys()


def test_a_mistake_that_a_worker_finds_is_not_tried_again(model: str, scored: str, tmp_path: Path) -> None:
    config = support.train_config(model, scored, tmp_path / "out", lora={"targets": ["c_attn"]}, max_failures=3)
    with pytest.raises(UserError, match=r"lora.targets.*q_proj"):
        train(config)
    assert not (tmp_path / "out" / "notes.log").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"deepspeed": {"gradient_clipping": 3}}, r"deepspeed.gradient_clipping.*max_gradient_norm"),
        ({"policy": "sft", "max_reject_fraction": 0.0}, r"1 of 11 rows could not be used"),
    ],
)
def test_mistakes_show_before_workers_start(changes: dict[str, Any], message: str, model: str, tmp_path: Path) -> None:
    rows = [row | {"standard_ids": None} if row["id"] == "row-002" else row for row in support.scored_rows()]
    table = support.save_scored(tmp_path / "table", model, rows)
    config = support.train_config(model, table, tmp_path / "out", backend="inline", **changes)
    with pytest.raises(UserError, match=message):
        train(config)
    assert not (tmp_path / "out" / "checkpoints").exists()


@pytest.mark.exhaustive
def test_a_store_takes_a_whole_training(model: str, scored: str, tmp_path: Path) -> None:
    """Reached through fsspec, a folder behaves as a store. The worker is killed once there is a checkpoint."""
    settings: dict[str, Any] = {"epochs": 20, "batch_size": 2, "checkpoint_every_steps": 3, "lora": {}}
    output = f"fsspec+file://{tmp_path}/out"
    config = support.train_config(model, scored, tmp_path / "out", **settings)
    with a_worker_killed_when(lambda: any((tmp_path / "out").glob("checkpoints/*/checkpoint.json"))):
        result = train(config.model_copy(update={"output": output}))
    lines = support.record(output)
    assert [line["step"] for line in lines] == list(range(1, 121))
    assert result.manifest.counts["steps"] == 120
    assert train(config.model_copy(update={"output": output})).reused
    workers.train_in(support.train_config(model, scored, tmp_path / "alone", **settings), tmp_path / "checkpoints")
    assert [line["loss"] for line in lines] == [line["loss"] for line in support.record(tmp_path / "alone")]
    found, wanted = (tmp_path / name / "weights" / "adapter_model.safetensors" for name in ("out", "alone"))
    assert found.read_bytes() == wanted.read_bytes()


def test_a_table_of_another_tokenizer_is_refused(model: str, tmp_path: Path) -> None:
    assert "input_ids" in TABLES["scored"].names
    table = write_table(tmp_path / "table", "scored", support.scored_rows(), tokenizer="another")
    with pytest.raises(UserError, match="ids of another tokenizer"):
        train(support.train_config(model, table, tmp_path / "out", backend="inline"))
