"""The plan of a training as pure arithmetic: which examples make up a step, which worker runs them, the learning rate.

Everything follows from the seed and the step's number. So a resumed training needs to know the step and nothing else,
and every worker knows the whole step without asking the others.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Literal

import numpy as np

from nlft_ray.config import TrainOptions


@dataclass(frozen=True)
class Order:
    """The order in which `examples` examples are trained: each exactly once in every epoch."""

    examples: int
    batch_size: int
    """Examples of one optimizer step, over all workers. An epoch's last step takes what is left."""
    epochs: int
    seed: int
    max_steps: int | None = None

    @cached_property
    def steps_per_epoch(self) -> int:
        return -(-self.examples // self.batch_size)

    @cached_property
    def steps(self) -> int:
        """Optimizer steps of the whole training."""
        all_epochs = self.steps_per_epoch * self.epochs
        return all_epochs if self.max_steps is None else min(all_epochs, self.max_steps)

    def epoch(self, step: int) -> int:
        """Epoch of a step; both count from 0."""
        return step // self.steps_per_epoch

    def ends_epoch(self, step: int) -> bool:
        return (step + 1) % self.steps_per_epoch == 0

    def is_due(self, step: int, every_steps: int | None) -> bool:
        """Whether what happens every so many steps (None: once an epoch, and at the end) happens after this one."""
        if every_steps is None:
            return self.ends_epoch(step) or step + 1 == self.steps
        return (step + 1) % every_steps == 0

    def batch(self, step: int) -> list[int]:
        """Indices of the examples of one step, over all workers."""
        start = step % self.steps_per_epoch * self.batch_size
        permutation = _permutation(self.examples, self.seed, self.epoch(step))
        return [int(index) for index in permutation[start : start + self.batch_size]]


def order_of(options: TrainOptions, examples: int) -> Order:
    """The order that the options ask for."""
    return Order(examples, options.batch_size, options.epochs, options.seed, options.max_steps)


@dataclass(frozen=True)
class Split:
    """The layout of a step: which worker takes which examples in which pass.

    Any sizes fit together: slots that stay empty hold None.
    """

    workers: int
    micro_batch_size: int
    """Most examples of one forward and backward pass on one worker."""
    batch_size: int
    """Most examples of a step, over all workers."""

    @cached_property
    def micro_steps(self) -> int:
        """Forward and backward passes of a step; the same on every worker and in every step."""
        per_worker = -(-self.batch_size // self.workers)
        return -(-per_worker // self.micro_batch_size)

    def micro_batches(self, batch: Sequence[int], worker: int) -> list[list[int | None]]:
        """A worker's share of a step: `micro_steps` lists of `micro_batch_size` slots."""
        mine: list[int | None] = list(batch[worker :: self.workers])
        mine += [None] * (self.micro_steps * self.micro_batch_size - len(mine))
        return [mine[start : start + self.micro_batch_size] for start in range(0, len(mine), self.micro_batch_size)]


@lru_cache(maxsize=2)
def _permutation(examples: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(examples)


def learning_rate(
    step: int,
    *,
    steps: int,
    highest: float,
    schedule: Literal["cosine", "linear", "constant"],
    warmup_fraction: float,
) -> float:
    """Learning rate of a step (from 0) of `steps`.

    It rises linearly over the warm-up and reaches `highest` with the step after it. No step has the rate 0: the
    first is one rise above it, and the fall ends one step after the last.
    """
    warmup = round(steps * warmup_fraction)
    if step < warmup:
        return highest * (step + 1) / (warmup + 1)
    if schedule == "constant":
        return highest
    progress = (step - warmup) / (steps - warmup)
    return highest * (1 - progress if schedule == "linear" else (1 + math.cos(math.pi * progress)) / 2)
