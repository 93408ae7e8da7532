"""Training as a Ray job: checks and counts here, the loop in Ray Train's workers.

What needs torch and transformers is imported where it is used: Ray Train's controller, a process of its own, imports
this file too, and training begins only when it has.
"""

import os
import tempfile
import time
import uuid
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

from nlft_ray.config import TrainConfig
from nlft_ray.errors import UserError
from nlft_ray.execution import process, ray_cluster
from nlft_ray.execution.placement import largest_share, places
from nlft_ray.log import log
from nlft_ray.stages.train.deepspeed_config import check_deepspeed_keys
from nlft_ray.stages.train.examples import Weighing
from nlft_ray.stages.train.order import order_of
from nlft_ray.stages.train.watch import Watch, add_note
from nlft_ray.storage.folder import Folder
from nlft_ray.tables.manifest import (
    MANIFEST,
    Identity,
    Manifest,
    StageResult,
    begin,
    check_rejects,
    finish,
    identity_of,
    input_fingerprint,
    read_manifest,
    settle_dtype,
    with_settled_dtype,
)
from nlft_ray.tables.shards import REJECTED, rejects_table
from nlft_ray.tables.training import read_metrics

_ray_train: Any = ray.train  # the annotations are those of Ray Train's first version, what runs is the second
_TorchTrainer: Any = TorchTrainer

_POLLING_SECONDS = "0.25"
_RESIZING_SECONDS = 60.0  # between looks whether an elastic training could have more workers


def train(config: TrainConfig) -> StageResult:
    """Fine-tune by a policy. Killed at any moment and started again, it continues from its last checkpoint.

    Raises:
        UserError: the input does not fit, the output belongs to something else, or training cannot go on.
    """
    source, output = Folder(config.input), Folder(config.output)
    from nlft_ray.stages.train.checkpoints import CHECKPOINTS, newest_step

    scored = read_manifest(source, table="scored")
    check_deepspeed_keys(config.deepspeed, config.zero_stage)
    held_out = read_manifest(Folder(config.held_out), table="scored", option="held_out") if config.held_out else None
    identify = partial(_identity, config, scored, held_out)
    there = output.has(MANIFEST)  # otherwise there is work, and Ray can start while transformers is imported
    identity = identify() if there else ray_cluster.connect_during(identify, config.ray_address)
    on_gpu = partial(_workers_have_gpus, config)
    identity = settle_dtype(output, identity, overwrite=config.overwrite, on_gpu=on_gpu)
    complete = begin(output, identity, overwrite=config.overwrite)
    if complete is not None:
        return StageResult(output=config.output, manifest=complete, reused=True)
    began, earlier = time.monotonic(), _seconds_of_steps(output)
    survey = _survey(config, source, output, identity, scored)
    steps = order_of(config, int(survey.counts["examples"])).steps
    ray_cluster.connect(config.ray_address)
    if done := newest_step(output / CHECKPOINTS):
        log(f"train: goes on after step {done} of {steps}, from its newest checkpoint.")
    with Watch(output, steps):
        _fit(with_settled_dtype(config, identity, on_gpu), output, identity)
    after = read_metrics(output)
    kept = {line["step"]: line["seconds"] for line in after}
    manifest = survey.model_copy(
        update={
            "counts": survey.counts | {"steps": len(after), "final_loss": after[-1]["loss"]} | _best_held_out(after),
            "seconds": time.monotonic()
            - began
            + sum(seconds for step, seconds in earlier.items() if kept.get(step) == seconds),
        }
    )
    finish(output, manifest)
    return StageResult(output=config.output, manifest=manifest)


def _identity(config: TrainConfig, scored: Manifest, held_out: Manifest | None) -> Identity:
    from nlft_ray.models.loading import load_tokenizer, model_fingerprint, tokenizer_fingerprint

    tokenizer = tokenizer_fingerprint(load_tokenizer(config.model))
    for option, folder, table in (("input", config.input, scored), ("held_out", config.held_out, held_out)):
        if table and table.identity.tokenizer not in (None, tokenizer):
            raise UserError(
                f"{option}: {folder} holds ids of another tokenizer (tokenizer: {table.identity.tokenizer} there, "
                f"{tokenizer} in {config.model.path}). Use the model that it was scored with, or score again."
            )
    identity = identity_of(
        config,
        "train",
        table="weights",
        model=model_fingerprint(config.model),
        tokenizer=tokenizer,
        input=input_fingerprint(scored),
    )
    if held_out:
        identity.config["held_out"] = input_fingerprint(held_out)
        if identity.config["held_out"] == identity.input:
            raise UserError(f"held_out: {config.held_out} is the table that is trained on. Name another.")
    return identity


def _best_held_out(lines: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The step after which the loss on the held-out table was lowest."""
    measured = [line for line in lines if line["held_out_loss"] is not None]
    if not measured:
        return {}
    best, last = min(measured, key=lambda line: line["held_out_loss"]), measured[-1]
    log(
        f"train: the loss on held-out rows was lowest after step {best['step']}: {best['held_out_loss']:.4f}; "
        f"after step {last['step']} it is {last['held_out_loss']:.4f}."
    )
    return {"best_held_out_step": best["step"], "best_held_out_loss": best["held_out_loss"]}


def _seconds_of_steps(output: Folder) -> dict[int, float]:
    return {line["step"]: line["seconds"] for line in read_metrics(output)}


def _survey(config: TrainConfig, source: Folder, output: Folder, identity: Identity, scored: Manifest) -> Manifest:
    """Weigh the whole table once, keeping only counts, so that what is wrong with it shows before workers start.

    Raises:
        UserError: nothing is left to train on, too many rows cannot be used, or the table was changed.
    """
    from nlft_ray.models.loading import max_length

    weighing = Weighing(config.policy, max_length(config.model))
    tokens = sum(len(example.input_ids) for example in weighing.examples(source))
    rows = weighing.counts["rows"]
    if rows != scored.rows_out:
        raise UserError(f"input: its manifest counts {scored.rows_out} rows, its files hold {rows}: they were changed.")
    if weighing.rejects:
        (output / REJECTED).write_table("part-000000.parquet", rejects_table("train", weighing.rejects))
    manifest = Manifest(
        identity=identity,
        rows_in=rows,
        rows_out=weighing.counts["examples"],
        rows_set_aside=weighing.counts["rows_without_weight"],
        set_aside_reasons=weighing.set_aside_reasons,
        rows_rejected=len(weighing.rejects),
        reject_reasons=weighing.reject_reasons,
        tokens=tokens * config.epochs,
        seconds=0,
        counts=dict(weighing.counts),
    )
    check_rejects(config, "train", manifest, output)
    return manifest


def _fit(config: TrainConfig, output: Folder, identity: Identity) -> None:
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", _POLLING_SECONDS)  # by default the end waits for 2 s
    resources = _worker_resources(config)
    trainer = _TorchTrainer(
        _worker,
        train_loop_config={"config": _absolute(config), "cpus": resources["CPU"], "gpus": resources.get("GPU", 0)},
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
            name=f"{identity.fingerprint()}-{uuid.uuid4().hex[:8]}",
            storage_path=str(Path(tempfile.gettempdir()) / "nlft-ray-train"),
            failure_config=_ray_train.FailureConfig(max_failures=config.max_failures),
            callbacks=[_Failures(output)],
            logging_config=_ray_train.LoggingConfig(log_level="ERROR"),
        ),
    )
    try:
        result = trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise _explained(error, config) from error
    if result.return_value:
        raise UserError(result.return_value["user_error"])


def _absolute(config: TrainConfig) -> TrainConfig:
    """The same with absolute paths: Ray Train's workers run in a folder of their own."""
    model = Path(config.model.path).expanduser()
    model_path = str(model.absolute()) if model.is_dir() else config.model.path
    return config.model_copy(
        update={
            "model": config.model.model_copy(update={"path": model_path}),
        }
    )


def _workers_have_gpus(config: TrainConfig) -> bool:
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


def _explained(error: BaseException, config: TrainConfig) -> BaseException:
    """What the user can mend inside a failed training, where there is such; otherwise the failure itself."""
    for rank, failure in getattr(error, "worker_failures", {}).items():
        if mistake := ray_cluster.user_error_in(failure):
            return mistake
        if isinstance(failure, WorkerHealthCheckFailedError):
            return UserError(
                f"train: worker {rank} was lost, killed perhaps for want of memory, and max_failures="
                f"{config.max_failures} allows no further restart. Run the same command again: it continues from "
                "its last checkpoint."
            )
    return ray_cluster.user_error_in(error) or error


def _worker(settings: dict[str, Any]) -> dict[str, str] | None:
    """What one of Ray Train's workers runs. A user's mistake is returned: raised, it would be tried again."""
    if not settings["gpus"]:
        os.environ |= {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}  # before DeepSpeed looks for a device
    with process.starting():
        import torch

        from nlft_ray.stages.train.checkpoints import CHECKPOINTS, Checkpoints
        from nlft_ray.stages.train.loop import train_worker

    torch.set_num_threads(max(min(int(settings["cpus"]), os.cpu_count() or 1), 1))
    config: TrainConfig = settings["config"]
    try:
        train_worker(config, Checkpoints(Folder(config.output) / CHECKPOINTS, config.checkpoints_to_keep))
    except UserError as error:
        return {"user_error": str(error)}
    return None


class _Failures(ray.train.UserCallback):
    """Leaves word of lost workers where the driver looks: it lives in another process."""

    def __init__(self, output: Folder):
        self._output = output

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        # Those who lose a partner complain too: the one that is gone is the cause.
        lost = [rank for rank, error in worker_exceptions.items() if isinstance(error, WorkerHealthCheckFailedError)]
        rank, error = next(iter(worker_exceptions.items()))
        error_text = " ".join(str(error).split())[:200]
        what = f"lost worker {lost[0]}" if lost else f"worker {rank} failed: {error_text}"
        add_note(self._output, f"{what}; going on from the newest checkpoint where max_failures allows it")
