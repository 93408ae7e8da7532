"""Training workers under Ray Train: a group of processes that is started again where one of them is lost."""

import os
import tempfile
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray.train
from ray.train.torch import TorchTrainer

from nlft_ray.config import TrainConfig
from nlft_ray.errors import UserError
from nlft_ray.execution import process, ray_cluster
from nlft_ray.execution.placement import largest_share, places
from nlft_ray.log import log

_ray_train: Any = ray.train  # the annotations are those of Ray Train's first version, what runs is the second
_TorchTrainer: Any = TorchTrainer

_POLLING_SECONDS = "0.25"
_RESIZING_SECONDS = 60.0  # between looks whether an elastic training could have more workers
_LOST = "WorkerHealthCheckFailedError"  # by its name, since Ray Train keeps the class in a private module


def run_workers(
    work: Callable[[TrainConfig], dict[str, float]], config: TrainConfig, name: str, on_failure: Callable[[str], None]
) -> dict[str, float]:
    """Do `work` on every worker of a group, all at once, and again with those that are left where one is lost.

    Args:
        work: A function of a module: workers import it, and so does Ray Train's controller, a process of its own. What
            takes long to import belongs into the function.
        name: What Ray calls the group.
        on_failure: Called with a line about each failure that is recovered from, in the controller's process.

    Returns:
        What `work` gives on the first worker.

    Raises:
        UserError: as `work` raises it; or workers were lost more often than `max_failures` allows.
    """
    ray_cluster.connect(config.ray_address)
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", _POLLING_SECONDS)  # by default the end waits for 2 s
    resources = _worker_resources(config)
    settings = {"work": work, "config": config, "cpus": resources["CPU"], "gpus": resources.get("GPU", 0)}
    trainer = _TorchTrainer(
        _worker,
        train_loop_config=settings,
        scaling_config=_ray_train.ScalingConfig(
            num_workers=config.num_workers,
            elastic_resize_monitor_interval_s=_RESIZING_SECONDS,
            use_gpu=resources.get("GPU", 0) > 0,
            resources_per_worker=resources,
            label_selector=config.label_selector or None,
        ),
        run_config=_ray_train.RunConfig(
            # Checkpoints are our own, so Ray Train is to remember nothing: it would take a name that it knows for the
            # same training, and its record of checkpoints is lost where a kill meets it in the writing.
            name=f"{name}-{uuid.uuid4().hex[:8]}",
            storage_path=str(Path(tempfile.gettempdir()) / "nlft-ray-train"),
            failure_config=_ray_train.FailureConfig(max_failures=config.max_failures),
            callbacks=[_Failures(on_failure)],
            logging_config=_ray_train.LoggingConfig(log_level="ERROR"),
        ),
    )
    try:
        result = trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise _user_error_or_itself(error, config) from error
    given: dict[str, Any] = result.return_value
    if "user_error" in given:
        raise UserError(given["user_error"])
    return given


def have_gpus(config: TrainConfig) -> bool:
    """Whether workers will have GPUs, by what the cluster has.

    Raises:
        UserError: no cluster answers, or the label selector is not one.
    """
    ray_cluster.connect(config.ray_address)
    return ray_cluster.gpus_of_worker(config.gpus_per_worker, ray_cluster.nodes_with(config.label_selector)) > 0


def _worker_resources(config: TrainConfig) -> dict[str, float]:
    """CPUs and GPUs of one worker; where the number of CPUs is left open, as many as let all workers start."""
    nodes = ray_cluster.nodes_with(config.label_selector)
    gpus = int(ray_cluster.gpus_of_worker(config.gpus_per_worker, nodes))
    cpus = config.cpus_per_worker or largest_share(nodes, config.most_workers, gpus)
    room = places(nodes, cpus, gpus)
    if room < config.least_workers:
        log(
            f"train: {config.least_workers} workers of {cpus} CPUs and {gpus} GPUs do not fit on the cluster as it is "
            f"(there is room for {room}); waiting for nodes."
        )
    return {"CPU": float(cpus), "GPU": float(gpus)} if gpus else {"CPU": float(cpus)}


def _user_error_or_itself(error: BaseException, config: TrainConfig) -> BaseException:
    """The user's mistake inside a failed training, or what to do about lost workers; else the failure itself."""
    for rank, failure in getattr(error, "worker_failures", {}).items():
        if mistake := ray_cluster.user_error_in(failure):
            return mistake
        if type(failure).__name__ == _LOST:
            return UserError(
                f"train: worker {rank} was lost, killed perhaps for want of memory, and max_failures="
                f"{config.max_failures} allows no further restart. Run the same command again: it continues from "
                "its last checkpoint."
            )
    return ray_cluster.user_error_in(error) or error


def _worker(settings: dict[str, Any]) -> dict[str, Any]:
    """Do the work in one of Ray Train's processes. A user's mistake is returned: raised, it would be tried again."""
    if not settings["gpus"]:
        os.environ |= {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}  # before DeepSpeed looks for a device
    with process.starting():
        import torch

    if settings["gpus"]:
        try:
            process.check_gpus("gpus_per_worker")
        except UserError as error:
            return {"user_error": str(error)}
    torch.set_num_threads(max(min(int(settings["cpus"]), process.usable_cpus()), 1))
    try:
        given: dict[str, Any] = settings["work"](settings["config"])
    except UserError as error:
        return {"user_error": str(error)}
    return given


class _Failures(ray.train.UserCallback):
    """Passes failures on that training recovers from. It lives in the controller's process."""

    def __init__(self, on_failure: Callable[[str], None]):
        self._on_failure = on_failure

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        # Workers that lost a partner raise too: the one that failed its health check is the cause.
        lost = [rank for rank, error in worker_exceptions.items() if type(error).__name__ == _LOST]
        rank, error = next(iter(worker_exceptions.items()))
        error_text = " ".join(str(error).split())[:200]
        what = f"lost worker {lost[0]}" if lost else f"worker {rank} failed: {error_text}"
        self._on_failure(f"{what}; going on from the newest checkpoint where max_failures allows it")
