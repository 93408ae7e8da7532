"""What other programs are sent: every step once, in one run, however often the training is started."""

import json
import os
import struct
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from nlft_ray.errors import UserError
from nlft_ray.stages.train import loop, trackers
from nlft_ray.stages.train.job import train
from nlft_ray.stages.train.trackers import Reports, check_trackers
from nlft_ray.storage.folder import Folder
from nlft_ray.tables.training import METRICS
from tests.stages.train import support

CONFIG = {"learning_rate": 0.01, "policy": {"name": "nlft", "theta": 0.9}}


def write_record(output: Path | str, steps: range, loss: float = 1.0) -> None:
    lines = [{"step": step, "epoch": 1, "loss": loss, "held_out_loss": None} for step in steps]
    Folder(str(output)).write_text(METRICS, "".join(json.dumps(line) + "\n" for line in lines))


def send(output: Path | str, name: str) -> None:
    with Reports(Folder(str(output)), [name], CONFIG):
        pass


def read_tensorboard(output: Path) -> list[list[int]]:
    board = EventAccumulator(str(output / "tensorboard")).Reload()
    return [[event.step for event in board.Scalars("loss")]]


def read_mlflow(output: Path) -> list[list[int]]:
    from mlflow import MlflowClient

    client = MlflowClient()
    experiments = [found.experiment_id for found in client.search_experiments(filter_string="name = 'nlft-ray'")]
    runs = client.search_runs(experiments)
    assert all(run.data.params["policy.name"] == "nlft" for run in runs)
    return [[metric.step for metric in client.get_metric_history(run.info.run_id, "loss")] for run in runs]


def read_trackio(output: Path) -> list[list[int]]:
    import trackio
    from trackio.sqlite_storage import SQLiteStorage

    project = os.environ["TRACKIO_PROJECT"]
    runs = list(trackio.Api().runs(project))
    assert all(run.config["policy"]["name"] == "nlft" for run in runs)
    return [[line["step"] for line in SQLiteStorage.get_logs(project, run_id=run.id)] for run in runs]


def read_wandb(output: Path) -> list[list[int]]:
    """The steps of runs without a network: a file each, named by the id, of records as LevelDB's logs hold them."""
    steps: dict[str, list[int]] = {}
    for file in sorted(output.parent.glob("*/wandb/offline-run-*/*.wandb")):
        steps.setdefault(file.stem, []).extend(wandb_steps(file.read_bytes()))
    return list(steps.values())


def wandb_steps(content: bytes) -> Iterator[int]:
    from wandb.proto import wandb_internal_pb2

    place, payload = 7, b""  # after the file's own header
    while place + 7 <= len(content):
        if 2**15 - place % 2**15 < 7:  # no record's header begins in the last bytes of a block
            place += 2**15 - place % 2**15
            continue
        _, size, kind = struct.unpack_from("<IHB", content, place)
        payload += content[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # whole, or the last part
            record, payload = wandb_internal_pb2.Record.FromString(payload), b""
            if record.WhichOneof("record_type") == "history":
                yield record.history.step.num


READERS: Mapping[str, Callable[[Path], list[list[int]]]] = {
    "tensorboard": read_tensorboard,
    "mlflow": read_mlflow,
    "trackio": read_trackio,
    "wandb": read_wandb,
}
"""Program → the steps of each of its runs."""


@pytest.fixture
def name(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A program, whose runs of this test lie in a folder of their own."""
    pytest.importorskip(request.param, reason=f"{request.param} is not installed")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # its database would take seconds to make
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # it is read once: then tests differ by the project
    monkeypatch.setenv("TRACKIO_PROJECT", tmp_path.name)
    return request.param


@pytest.mark.parametrize("name", READERS, indirect=True)
def test_a_training_that_goes_on_is_one_run_with_every_step_once(name: str, tmp_path: Path) -> None:
    output = tmp_path / "out"
    write_record(output, range(1, 4))
    send(output, name)
    assert READERS[name](output) == [[1, 2, 3]]
    write_record(output, range(1, 6), loss=2.0)  # begun again after step 2
    send(output, name)
    send(output, name)
    assert READERS[name](output) == [[1, 2, 3, 4, 5]]


@pytest.mark.parametrize("name", set(READERS) - {"tensorboard"}, indirect=True)
def test_another_output_is_another_run(name: str, tmp_path: Path) -> None:
    for output in (tmp_path / "a", tmp_path / "b"):
        write_record(output, range(1, 3))
        send(output, name)
    assert READERS[name](output) == [[1, 2], [1, 2]]


def test_tensorboard_in_a_store_is_whole(tmp_path: Path) -> None:
    """fsspec's way to the same local folder behaves as a store does: files are written whole."""
    output = f"fsspec+file://{tmp_path}/out"
    write_record(output, range(1, 3))
    send(output, "tensorboard")
    assert read_tensorboard(tmp_path / "out") == [[1, 2]]


@pytest.mark.usefixtures("process_group", "one_thread")
def test_a_killed_training_goes_on_in_its_run(
    model: str, scored: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = support.train_config(
        model, scored, tmp_path / "out", backend="inline", epochs=2, batch_size=3, checkpoint_every_steps=3
    )
    take = loop.Stepper.take

    def killed(stepper: loop.Stepper, step: int) -> Any:
        if step == 5:
            raise KeyboardInterrupt
        return take(stepper, step)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Stepper, "take", killed)
        with pytest.raises(KeyboardInterrupt):
            train(config)
    assert read_tensorboard(tmp_path / "out") == [[1, 2, 3, 4, 5]]
    id = (tmp_path / "out" / "run_id.txt").read_text()
    steps = train(config).manifest.counts["steps"]
    assert read_tensorboard(tmp_path / "out") == [list(range(1, int(steps) + 1))]
    assert (tmp_path / "out" / "run_id.txt").read_text() == id
    other = config.model_copy(update={"report_to": []})
    assert train(other).reused, "what is reported is no part of an output's identity"


@dataclass
class Failing:
    """A program that takes nothing for a while."""

    run: Any
    last_step: int = 0

    def __post_init__(self) -> None:
        self.steps: list[int] = []
        self.works = False
        self.failed: bool | None = None

    def log(self, step: int, values: Mapping[str, float]) -> None:
        if not self.works:
            raise ConnectionError("no way to\nits server.")
        assert "held_out_loss" not in values
        self.steps.append(step)

    def close(self, *, failed: bool) -> None:
        self.failed = failed
        raise ConnectionError("gone")


def test_a_program_that_fails_stops_no_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made: list[Failing] = []

    def make(run: Any) -> Failing:
        made.append(Failing(run))
        return made[-1]

    monkeypatch.setitem(trackers._TRACKERS, "mlflow", ("json", make))
    monkeypatch.setattr(trackers, "_SECONDS_BETWEEN_LOOKS", 0.01)
    write_record(tmp_path, range(1, 4))

    def broken_off() -> None:
        with Reports(Folder(str(tmp_path)), ["mlflow"], CONFIG) as reports:
            while not reports._refused:
                pass
            made[0].works = True
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        broken_off()
    said = capsys.readouterr().err
    assert said.count("mlflow has no steps from 1 on (no way to its server); they stand in metrics.jsonl") == 1
    assert "mlflow did not end well: gone" in said
    assert (made[0].steps, made[0].failed) == ([1, 2, 3], True)


def test_what_cannot_be_opened_is_said_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(run: Any) -> Any:
        raise PermissionError("no key\nhere.")

    monkeypatch.setitem(trackers._TRACKERS, "wandb", ("json", refuse))
    with pytest.raises(UserError, match=r"^report_to: wandb cannot be opened: no key here\. Mend that, or leave"):
        Reports(Folder(str(tmp_path)), ["wandb"], CONFIG)
    monkeypatch.setitem(sys.modules, "trackio", None)
    monkeypatch.setitem(trackers._TRACKERS, "trackio", ("no_such_module", refuse))
    with pytest.raises(UserError, match=r"^report_to: trackio is not installed\. Install it \(pip install "):
        check_trackers(["tensorboard", "trackio"])
