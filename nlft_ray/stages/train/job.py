"""The course of stage `train`: checks and the weighing here, the loop in workers that Ray Train or this process runs.

What needs torch, transformers or Ray is imported where it is used. Ray Train's controller, a process of its own,
imports this file too, and training begins only when it has; and inline, Ray has no part in it.
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from nlft_ray.config import TrainConfig
from nlft_ray.errors import UserError
from nlft_ray.execution import process
from nlft_ray.log import log
from nlft_ray.models.automatic import automatic_settings, with_one_commit
from nlft_ray.stages.train.deepspeed_config import check_deepspeed_keys
from nlft_ray.stages.train.metrics import Watch, add_note, cut_record
from nlft_ray.stages.train.schedule import order_of
from nlft_ray.stages.train.trackers import Reports, check_trackers
from nlft_ray.storage.folder import Folder
from nlft_ray.tables.manifest import (
    MANIFEST,
    Identity,
    Manifest,
    StageResult,
    begin,
    begun_model,
    check_rejects,
    check_tokenizer,
    finish,
    identity_of,
    input_fingerprint,
    read_manifest,
    settle_model,
    with_settled_model,
)
from nlft_ray.tables.training import read_metrics

_OUT_OF_MEMORY = "out_of_memory.txt"


def train(config: TrainConfig) -> StageResult:
    """Fine-tune by a policy. Killed at any moment and started again, it continues from its last checkpoint.

    Raises:
        UserError: the input does not fit, the output belongs to something else, or training cannot go on.
    """
    output = Folder(config.output)
    scored = read_manifest(Folder(config.input), table="scored")
    config = with_one_commit(config, begun_model(output))
    check_deepspeed_keys(config.deepspeed, config.zero_stage)
    check_trackers(config.report_to)
    held_out = read_manifest(Folder(config.held_out), table="scored", option="held_out") if config.held_out else None
    identity = _while_ray_starts(config, partial(_identity, config, scored, held_out))
    automatic = automatic_settings(config.model, partial(_on_gpu, config))
    identity = settle_model(output, identity, overwrite=config.overwrite, automatic=automatic)
    complete = begin(output, identity, overwrite=config.overwrite)
    if complete is not None:
        return StageResult(output=config.output, manifest=complete, reused=True)
    from nlft_ray.stages.train.checkpoints import CHECKPOINTS, newest_step
    from nlft_ray.stages.train.weighing import survey

    began, earlier = time.monotonic(), read_metrics(output)
    manifest = survey(config, identity, scored.rows_out)
    check_rejects(config, "train", manifest, output)
    steps = order_of(config, manifest.rows_out).steps
    if done := newest_step(output / CHECKPOINTS):
        log(f"train: goes on after step {done} of {steps}, from its newest checkpoint.")
    cut_record(output, done)
    with Reports(output, config.report_to, identity.config), process.in_background(Watch(output, steps).run):
        counted = _run(with_settled_model(config, identity, automatic), identity, output)
    lines = read_metrics(output)
    manifest = manifest.model_copy(
        update={
            "counts": manifest.counts
            | {"steps": len(lines), "final_loss": lines[-1]["loss"]}
            | _best_held_out(lines)
            | counted,
            "seconds": time.monotonic() - began + _seconds_in_both(earlier, lines),
        }
    )
    finish(output, manifest)
    return StageResult(output=config.output, manifest=manifest)


def _while_ray_starts(config: TrainConfig, identify: Callable[[], Identity]) -> Identity:
    """The identity, for which transformers is imported; where there is work, Ray starts at the same time."""
    if config.backend == "inline" or Folder(config.output).has(MANIFEST):
        return identify()
    from nlft_ray.execution import ray_cluster

    return ray_cluster.connect_during(identify, config.ray_address)


def _identity(config: TrainConfig, scored: Manifest, held_out: Manifest | None) -> Identity:
    with process.starting():
        from nlft_ray.models import loading

    _check_adapter(config)
    method = None if config.lora else loading.checkpoint_quantisation(config.model)
    if method:
        raise UserError(
            f"lora: the weights of {config.model.path} are quantised ({method}) and cannot be trained themselves: set "
            "lora, or name the model that was not quantised."
        )
    tokenizer = loading.tokenizer_fingerprint(loading.load_tokenizer(config.model))
    for option, folder, table in (("input", config.input, scored), ("held_out", config.held_out, held_out)):
        if table:
            advice = f"Set model.path, now {config.model.path}, to the model that it was scored with, or score again."
            check_tokenizer(option, folder, table.identity.tokenizer, tokenizer, advice)
    identity = identity_of(
        config,
        "train",
        table="weights",
        model=loading.model_fingerprint(config.model),
        tokenizer=tokenizer,
        input=input_fingerprint(scored),
    )
    if held_out:
        identity.config["held_out"] = input_fingerprint(held_out)
        if identity.config["held_out"] == identity.input:
            raise UserError(f"held_out: {config.held_out} is the table that is trained on. Name another.")
    return identity


def _check_adapter(config: TrainConfig) -> None:
    """Raise a UserError if the model is an adapter, and can neither be merged nor trained as it is."""
    from nlft_ray.models.folders import adapter_of
    from nlft_ray.models.loading import is_quantised

    adapter = adapter_of(config.model, weights=False)
    if adapter is None:
        return
    spread = "weights that ZeRO-3 spreads" if config.zero_stage == 3 else None
    obstacle = "quantised weights" if is_quantised(adapter.base) else spread
    if obstacle:
        raise UserError(
            f"model.path: {config.model.path} is an adapter, which cannot be merged into {obstacle}, to train on from "
            "there. Export it with merge=true, and train that model."
        )


def _on_gpu(config: TrainConfig) -> bool:
    """Whether the workers will have GPUs."""
    if config.backend == "inline":
        import torch

        return torch.cuda.is_available()
    from nlft_ray.execution import ray_workers

    return ray_workers.have_gpus(config)


def _run(config: TrainConfig, identity: Identity, output: Folder) -> dict[str, float]:
    """Have all workers train, where the configuration says; what the manifest is to count of the model.

    Raises:
        UserError: as a worker raises it; or one ran out of memory.
    """
    output.delete(_OUT_OF_MEMORY)
    try:
        if config.backend == "inline":
            return _run_inline(config)
        from nlft_ray.execution.ray_workers import run_workers

        return run_workers(_work, config, identity.fingerprint(), on_failure=partial(add_note, output))
    except UserError:
        raise
    except Exception as error:
        if output.has(_OUT_OF_MEMORY):
            raise UserError(output.read_text(_OUT_OF_MEMORY)) from error
        raise


def _work(config: TrainConfig) -> dict[str, float]:
    """Train, as one worker of the process group that this process is in."""
    with process.starting():
        from nlft_ray.models.memory import is_out_of_memory
        from nlft_ray.stages.train.checkpoints import CHECKPOINTS, Checkpoints
        from nlft_ray.stages.train.loop import train_worker

    output = Folder(config.output)
    if output.has(_OUT_OF_MEMORY):  # another start of this group would end as the last one did
        raise UserError(output.read_text(_OUT_OF_MEMORY))
    try:
        return train_worker(config, Checkpoints(output / CHECKPOINTS, config.checkpoints_to_keep))
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            output.write_text(_OUT_OF_MEMORY, _advice_on_memory(config, error))
        raise  # so that the other workers are ended too, who wait for this one


def _advice_on_memory(config: TrainConfig, error: BaseException) -> str:
    """What to change where a worker ran out of memory: whatever of it is not in use yet."""
    options = {
        f"micro_batch_size_per_worker=1 (now {config.micro_batch_size_per_worker})": config.micro_batch_size_per_worker
        > 1,
        "gradient_checkpointing=true": not config.gradient_checkpointing,
        "lora: adapters in place of all parameters": config.lora is None,
        f"a higher zero_stage (now {config.zero_stage}) with more num_workers": config.zero_stage < 3,
        "model.dtype=bfloat16": config.model.dtype != "bfloat16",
    }
    useful = ", ".join(option for option, is_open in options.items() if is_open)
    return (
        f"train: a worker ran out of memory ({' '.join(str(error).split())[:200]}). What takes less: "
        f"{useful or 'shorter texts, by model.max_length in scoring'}. `nlft-ray plan` says what fits. The same "
        "command with other settings goes on from its newest checkpoint where these leave the results as they are."
    )


def _run_inline(config: TrainConfig) -> dict[str, float]:
    """Train in this process, as the only worker, and leave the process as it was.

    Raises:
        UserError: the GPU that was asked for is not there, or the one that is was not asked for.
    """
    import torch

    gpus = int(torch.cuda.is_available())
    if config.gpus_per_worker not in (None, gpus):
        raise UserError(
            f"gpus_per_worker: it is {config.gpus_per_worker}, but backend=inline trains in this process, which sees "
            f"{'a GPU' if gpus else 'none'}. Leave it out; CUDA_VISIBLE_DEVICES, set before the command, hides GPUs."
        )
    # DeepSpeed looks for these. A GPU is hidden from it alone: for CUDA it would stay hidden after this training.
    changes = {"LOCAL_RANK": "0"} | ({} if gpus else {"DS_ACCELERATOR": "cpu"})
    threads = torch.get_num_threads()
    cores = process.usable_cpus()
    with _environment(changes), _process_group("nccl" if gpus else "gloo"):
        torch.set_num_threads(min(config.cpus_per_worker or cores, cores))
        try:
            return _work(config)
        finally:
            torch.set_num_threads(threads)


@contextmanager
def _environment(changes: Mapping[str, str]) -> Iterator[None]:
    """Within, environment variables have these values; afterwards all are as they were."""
    before = dict(os.environ)
    os.environ.update(changes)
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


@contextmanager
def _process_group(backend: str) -> Iterator[None]:
    """Within, this process is a group of its own; one that it is in already serves as well, if it is alone there.

    Raises:
        UserError: it is in a group of several.
    """
    import torch.distributed as dist

    if dist.is_initialized():
        if dist.get_world_size() > 1:
            raise UserError("backend: inline trains in one process, and this one is in a group of several. Use ray.")
        yield
        return
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        from nlft_ray.stages.train.engine import leave_process_group

        leave_process_group()


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


def _seconds_in_both(earlier: Sequence[dict[str, Any]], lines: Sequence[dict[str, Any]]) -> float:
    """Seconds of the steps that earlier starts have taken and this one did not take again."""
    seconds = {line["step"]: line["seconds"] for line in earlier}
    return sum(line["seconds"] for line in lines if seconds.get(line["step"]) == line["seconds"])
