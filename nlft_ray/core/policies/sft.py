"""Supervised fine-tuning on the standard answers, for comparison."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from nlft_ray.core.policies.base import Policy, TokenWeights


@dataclass(frozen=True)
class Sft(Policy):
    """Every token of the standard answer has weight 1: plain cross-entropy. Responses are not used."""

    target: ClassVar[Literal["response", "standard_answer"]] = "standard_answer"

    name: Literal["sft"] = "sft"

    def weigh_tokens(self, n: int) -> TokenWeights:
        return TokenWeights.build(np.ones(n))
