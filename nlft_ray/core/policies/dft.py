"""Dynamic fine-tuning on correct responses, for comparison."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from nlft_ray.core.facts import TokenFacts
from nlft_ray.core.policies.base import Policy, TokenWeights
from nlft_ray.core.saliency import power


@dataclass(frozen=True)
class Dft(Policy):
    """Every token of a correct response weighs its p_base (DFT, arXiv 2508.05629); incorrect responses have no weight.

    What the model finds improbable is learned less, since its gradient is large by itself. DFT takes the probability
    at each step; here it is that of the scored model, so that `refresh` brings it up to date.
    """

    name: Literal["dft"] = "dft"

    def weigh(self, facts: TokenFacts) -> TokenWeights:
        weight = power(facts.logp_base, 1.0, n=facts.n) if facts.correct else np.zeros(facts.n)
        return TokenWeights.build(weight)
