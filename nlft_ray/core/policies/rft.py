"""Rejection-sampling fine-tuning, for comparison."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from nlft_ray.core.facts import TokenFacts
from nlft_ray.core.policies.base import Policy, TokenWeights


@dataclass(frozen=True)
class Rft(Policy):
    """Every token of a correct response has weight 1; incorrect responses have none."""

    name: Literal["rft"] = "rft"

    def weigh(self, facts: TokenFacts) -> TokenWeights:
        return TokenWeights.build(np.full(facts.n, float(facts.correct)))
