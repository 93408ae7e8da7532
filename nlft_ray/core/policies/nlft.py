"""Natural Language Fine-Tuning, the default policy."""

from dataclasses import dataclass
from typing import Literal

from nlft_ray.core.policies.rules import SaliencyRule


@dataclass(frozen=True)
class Nlft(SaliencyRule):
    """The released rules with growing corrected: over similar neighbours, both ways from the saliency token."""

    name: Literal["nlft"] = "nlft"
