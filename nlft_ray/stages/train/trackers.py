"""What other programs are sent of a training: each step's metrics, through the library of each.

The process that started the training follows its record (`metrics.jsonl`), wherever workers train, and sends every step
once: it has the user's environment, keys and network, and no worker waits for it. A training that is started again goes
on in the same run of each program, which is told by an id that lies in the output, and sends what is not there yet.
"""

import importlib.util
import os
import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from nlft_ray.errors import UserError
from nlft_ray.execution.process import in_background
from nlft_ray.log import log
from nlft_ray.storage.folder import Folder
from nlft_ray.tables.training import METRICS, read_metrics

TENSORBOARD = "tensorboard"
_RUN_ID = "run_id.txt"
_PROJECT = "nlft-ray"
"""Project, or experiment, of those who name none in the program's own environment variable."""
_MLFLOW_TAG = "nlft_ray.run"
_SECONDS_BETWEEN_LOOKS, _SECONDS_BETWEEN_DOWNLOADS = 1.0, 10.0


@dataclass(frozen=True)
class TrackedRun:
    """A training, as trackers know it."""

    id: str
    """As long as its output lasts: the same when it goes on, another when it is made anew."""
    name: str
    config: Mapping[str, Any]
    output: Folder


class Tracker(Protocol):
    """A run that is open in one of the programs."""

    last_step: int
    """Newest step that the program has already; 0 where it has none."""

    def log(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self, *, failed: bool) -> None: ...


class TensorBoard:
    """Files in the output, drawn anew at each start: TensorBoard would show two files' steps twice."""

    def __init__(self, run: TrackedRun):
        from torch.utils.tensorboard import SummaryWriter

        self.last_step = 0
        self._folder = run.output / TENSORBOARD
        self._folder.remove()
        self._scratch = None if run.output.is_local else tempfile.TemporaryDirectory()
        self._writer = SummaryWriter(self._scratch.name if self._scratch else self._folder.path)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self, *, failed: bool) -> None:
        self._writer.close()
        if self._scratch:
            self._folder.upload(Path(self._scratch.name))
            self._scratch.cleanup()


class WeightsAndBiases:
    """A run of wandb. Without a network (WANDB_MODE=offline) it is files, written anew at each start."""

    def __init__(self, run: TrackedRun):
        import wandb

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", _PROJECT),
            id=run.id,
            name=run.name,
            config=dict(run.config),
            resume="allow",
            reinit="create_new",
            dir=run.output.path if run.output.is_local else None,
        )
        self.last_step = 0 if self._run.offline else self._run.step - 1
        if self._run.offline and run.output.is_local:
            self._remove_earlier(Path(run.output.path) / "wandb")

    def _remove_earlier(self, folder: Path) -> None:
        for earlier in folder.glob("offline-run-*"):
            if earlier != Path(self._run.dir).parent:
                shutil.rmtree(earlier)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self, *, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


class MLflow:
    """A run of MLflow, where MLFLOW_TRACKING_URI says, in the experiment of MLFLOW_EXPERIMENT_NAME."""

    def __init__(self, run: TrackedRun):
        from mlflow import MlflowClient

        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")  # a server that is not there takes minutes by 7
        self._client = MlflowClient()
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", _PROJECT)
        known = self._client.get_experiment_by_name(name)
        experiment = known.experiment_id if known else self._client.create_experiment(name)
        found = self._client.search_runs([experiment], f"tags.`{_MLFLOW_TAG}` = '{run.id}'", max_results=1)
        self._id = found[0].info.run_id if found else self._create(experiment, run)
        self._client.update_run(self._id, status="RUNNING")
        self.last_step = max((metric.step for metric in self._client.get_metric_history(self._id, "epoch")), default=0)

    def _create(self, experiment: str, run: TrackedRun) -> str:
        created = self._client.create_run(experiment, run_name=run.name, tags={_MLFLOW_TAG: run.id})
        for name, value in _flat(run.config):
            self._client.log_param(created.info.run_id, name, value)
        return created.info.run_id

    def log(self, step: int, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._client.log_batch(self._id, [Metric(name, value, now, step) for name, value in values.items()])

    def close(self, *, failed: bool) -> None:
        self._client.set_terminated(self._id, "FAILED" if failed else "FINISHED")


class Trackio:
    """A run of Trackio, in its folder on this machine (TRACKIO_DIR), in the project of TRACKIO_PROJECT."""

    def __init__(self, run: TrackedRun):
        import trackio
        from trackio.sqlite_storage import SQLiteStorage

        project, name = os.environ.get("TRACKIO_PROJECT", _PROJECT), f"{run.name} {run.id}"
        self.last_step = SQLiteStorage.get_max_step_for_run(project, name) or 0
        self._run = trackio.init(project=project, name=name, config=dict(run.config), resume="allow", embed=False)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self, *, failed: bool) -> None:
        self._run.finish()


_TRACKERS: dict[str, tuple[str, Callable[[TrackedRun], Tracker]]] = {
    "tensorboard": ("tensorboard", TensorBoard),
    "wandb": ("wandb", WeightsAndBiases),
    "mlflow": ("mlflow", MLflow),
    "trackio": ("trackio", Trackio),
}
"""Name in `report_to` → the module that it needs, and its run."""


def check_trackers(names: Iterable[str]) -> None:
    """Raise a UserError if the library of one is not installed."""
    for name in names:
        module, _ = _TRACKERS[name]
        if importlib.util.find_spec(module) is None:
            raise UserError(f"report_to: {name} is not installed. Install it (pip install {module}), or leave it out.")


class Reports:
    """Sends the steps of a training to all trackers, until it is left.

    What one refuses while training goes on is said once and tried again at the end: it is no reason to fail.

    Raises:
        UserError: one cannot be opened, such as for a missing key or a server that does not answer.
    """

    def __init__(self, output: Folder, names: Sequence[str], config: Mapping[str, Any]):
        self._output = output
        run = TrackedRun(_run_id(output), "/".join(output.path.split("/")[-3:]), config, output)
        self._trackers = {name: _opened(name, run) for name in dict.fromkeys(names)}
        self._refused: set[str] = set()
        self._pause = _SECONDS_BETWEEN_LOOKS if output.is_local else _SECONDS_BETWEEN_DOWNLOADS
        self._sending = ExitStack()

    def __enter__(self) -> Self:
        self._sending.enter_context(in_background(self._run))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._sending.close()
        self._refused.clear()
        self._send()
        for name, tracker in self._trackers.items():
            try:
                tracker.close(failed=kind is not None)
            except Exception as problem:  # whatever its library raises: the weights do not depend on it
                log(f"train: {name} did not end well: {_one_line(problem)}")

    def _run(self, stopped: threading.Event) -> None:
        while not stopped.wait(self._pause):
            self._send()

    def _send(self) -> None:
        try:
            lines = read_metrics(self._output)
        except UserError as error:  # of a store; the next look has these lines too
            log(f"train: the record cannot be read: {error}")
            return
        for name, tracker in self._trackers.items():
            if name not in self._refused:
                self._send_to(name, tracker, lines)

    def _send_to(self, name: str, tracker: Tracker, lines: Sequence[Mapping[str, Any]]) -> None:
        for line in lines:
            step = line["step"]
            if step <= tracker.last_step:
                continue
            try:
                tracker.log(step, {key: value for key, value in line.items() if key != "step" and value is not None})
            except Exception as error:  # whatever its library raises
                self._refused.add(name)
                log(f"train: {name} has no steps from {step} on ({_one_line(error)}); they stand in {METRICS}.")
                return
            tracker.last_step = step


def _opened(name: str, run: TrackedRun) -> Tracker:
    try:
        return _TRACKERS[name][1](run)
    except UserError:
        raise
    except Exception as error:  # whatever its library raises
        raise UserError(
            f"report_to: {name} cannot be opened: {_one_line(error)}. Mend that, or leave {name} out of report_to."
        ) from error


def _run_id(output: Folder) -> str:
    if not output.has(_RUN_ID):
        output.write_text(_RUN_ID, uuid.uuid4().hex[:16])
    return output.read_text(_RUN_ID)


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300].rstrip(".") or type(error).__name__
