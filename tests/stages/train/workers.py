"""What worker processes of the tests do: real DeepSpeed engines, one or two processes, no Ray."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing

from nlft_ray.config import TrainConfig
from nlft_ray.stages.train.batch import MicroBatch
from nlft_ray.stages.train.engine import build_engine
from nlft_ray.stages.train.loop import load_examples, train_worker
from nlft_ray.stages.train.order import Order, Split
from nlft_ray.stages.train.step import Stepper
from tests.stages.train import support

Work = Callable[..., None]


def run(folder: Path, workers: int, tasks: list[tuple[Work, tuple[Any, ...]]]) -> None:
    """Do the tasks one after another in `workers` processes that form a group."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.multiprocessing.spawn(_worker, (workers, folder / "rendezvous", tasks), nprocs=workers)


def _worker(rank: int, workers: int, rendezvous: Path, tasks: list[tuple[Work, tuple[Any, ...]]]) -> None:
    os.environ["LOCAL_RANK"] = str(rank)
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=workers)
    for work, arguments in tasks:
        work(*arguments)
    dist.destroy_process_group()


def save_gradients(config: TrainConfig, path: Path) -> None:
    """The gradients of the first step, as they are before they are limited."""
    examples = load_examples(config)
    order = Order(len(examples), config.batch_size, config.epochs, config.seed)
    split = Split(dist.get_world_size(), config.micro_batch_size_per_worker, config.batch_size)
    engine = build_engine(config, split.micro_steps)
    gradients = {}

    class Watched(Stepper):
        def _update(self) -> float:
            from deepspeed.utils import safe_get_full_grad

            for name, parameter in engine.model.named_parameters():
                gradients[name] = safe_get_full_grad(parameter).clone()
            return super()._update()

    metrics = Watched(engine, config, examples, order, split, pad_id=0).take(0)
    if dist.get_rank() == 0:
        torch.save({"gradients": gradients, "loss": metrics.loss, "norm": metrics.gradient_norm}, path)


def train_in(config: TrainConfig, checkpoints: Path, stop_after: int | None = None) -> None:
    """Train, or continue; with `stop_after`, break off right after the checkpoint of that step."""
    session = support.LocalSession(checkpoints, dist.get_rank(), dist.get_world_size(), stop_after)
    try:
        train_worker(config, session)
    except support.Stopped:
        dist.barrier()


def count_kept(config: TrainConfig) -> list[int]:
    """Positions whose logits are asked for, example by example."""
    return [int(MicroBatch.of([example], 0).keep.sum()) for example in load_examples(config)]
