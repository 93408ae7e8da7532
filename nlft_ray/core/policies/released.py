"""Natural Language Fine-Tuning as the released code does it, for comparison."""

from dataclasses import dataclass
from typing import Literal

from nlft_ray.core.policies.base import option
from nlft_ray.core.policies.rules import SaliencyRule


@dataclass(frozen=True)
class Released(SaliencyRule):
    """Weights equal to those of the released code, without its misaligned term on incorrect responses."""

    name: Literal["released"] = "released"
    loss_scale: float = option(10.0, "The loss is multiplied by this (released code: 10).", gt=0)
    growing_metric: Literal["similarity", "distance"] = option(
        "distance", "The released code calls its measure a similarity but computes a cosine distance."
    )
    growing_threshold: float = option(0.4, "A neighbour is taken in above this distance (released code).")
    reset_centre: bool = option(
        False, "The released code grows to the right from the centre where growing to the left ended."
    )
