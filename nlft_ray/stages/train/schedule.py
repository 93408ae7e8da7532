"""The learning rate as a function of the step."""

import math
from typing import Literal


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
    fallen = (step - warmup) / (steps - warmup)
    return highest * (1 - fallen if schedule == "linear" else (1 + math.cos(math.pi * fallen)) / 2)
