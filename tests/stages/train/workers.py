"""What workers of the tests do: real DeepSpeed engines, in this process or in two others, no Ray."""

import multiprocessing
import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from nlft_ray.config import TrainConfig
from nlft_ray.stages.train.engine import build_engine
from nlft_ray.stages.train.examples import ExampleTable, MicroBatch
from nlft_ray.stages.train.loop import Stepper, train_worker
from nlft_ray.stages.train.model import write_weights
from nlft_ray.stages.train.schedule import Split, order_of
from nlft_ray.storage.folder import Folder
from tests.stages.train import support


class Group:
    """Processes that form a group and stay, since starting them takes longer than what they are asked to do."""

    def __init__(self, folder: Path, workers: int):
        context = multiprocessing.get_context("spawn")
        self._answers = context.Queue()
        self._questions = [context.Queue() for _ in range(workers)]
        self._processes = [
            context.Process(target=_serve, args=(rank, workers, folder / "rendezvous", questions, self._answers))
            for rank, questions in enumerate(self._questions)
        ]
        for process in self._processes:
            process.start()

    def do(self, work: Callable[..., None], *arguments: Any) -> None:
        """Have every process do it."""
        for questions in self._questions:
            questions.put((work, arguments))
        problems = [self._answers.get(timeout=200) for _ in self._processes]
        assert not any(problems), "\n".join(filter(None, problems))

    def close(self) -> None:
        for questions in self._questions:
            questions.put(None)
        for process in self._processes:
            process.join(20)
            process.kill()


def _serve(rank: int, workers: int, rendezvous: Path, questions: Any, answers: Any) -> None:
    os.environ["LOCAL_RANK"] = str(rank)
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=workers)
    while (question := questions.get()) is not None:
        work, arguments = question
        try:
            work(*arguments)
            answers.put(None)
        except BaseException:
            answers.put(traceback.format_exc())
    dist.destroy_process_group()


def weighed(config: TrainConfig) -> ExampleTable:
    """The examples of a training, which one worker weighs for all."""
    if dist.get_rank() == 0:
        support.weigh(config)
    dist.barrier()
    return support.weigh(config)


def save_steps(config: TrainConfig, steps: int, path: Path) -> None:
    """Loss, gradients (as they are before they are limited) and their norm in each step, and the parameters at last."""
    from deepspeed.utils import safe_get_full_grad

    examples = weighed(config)
    order = order_of(config, len(examples))
    split = Split(dist.get_world_size(), config.micro_batch_size_per_worker, config.batch_size)
    engine = build_engine(config, split.micro_steps)
    gradients: dict[str, torch.Tensor] = {}
    update = engine.step

    def step_and_look(learning_rate: float) -> float:
        for name, parameter in engine.trained_parameters().items():
            gradients[name] = safe_get_full_grad(parameter).clone()
        return update(learning_rate)

    engine.step = step_and_look  # type: ignore[method-assign]
    stepper, results = Stepper(engine, config, examples, order, split, pad_id=0), []
    for step in range(steps):
        metrics = stepper.take(step)
        results.append({"loss": metrics.loss, "norm": metrics.gradient_norm, "gradients": dict(gradients)})
    results[-1]["ways"] = engine.packed, engine.head is not None
    results[-1]["parameters"] = {name: states["value"].clone() for name, states in engine.gather_states()}
    if dist.get_rank() == 0:
        torch.save(results, path)


def train_in(config: TrainConfig, checkpoints: Path | str, stop_after: int | None = None) -> None:
    """Train, or continue; with `stop_after`, break off right after the checkpoint of that step."""
    weighed(config)
    try:
        train_worker(config, support.StoppingCheckpoints(checkpoints, stop_after))
    except support.Stopped:
        dist.barrier()


def measure_export(config: TrainConfig, results: Path) -> None:
    """The bytes by which this process grows, at the most, while the weights are written."""
    engine = build_engine(config, 1)
    for parameter in engine.model.parameters():
        getattr(parameter, "ds_tensor", parameter).sum()  # weights may be mapped from a file: read them now
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
    before = _memory("VmRSS")
    parameters = engine.gather_parameters(trained_only=config.lora is not None)
    if dist.get_rank() == 0:
        write_weights(engine.model, parameters, Folder(config.output))
    (results / str(dist.get_rank())).write_text(str(_memory("VmHWM") - before))


def _memory(what: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(what))
    return int(line.split()[1]) * 1024


def count_kept(config: TrainConfig) -> list[int]:
    """Positions whose logits are asked for, example by example."""
    return [int(MicroBatch.of([example], 0, packed=True).keep.sum()) for example in support.weigh(config)]
