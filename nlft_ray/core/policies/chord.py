"""The token weights of CHORD on correct responses, for comparison."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from nlft_ray.core.facts import TokenFacts
from nlft_ray.core.policies.base import Policy, TokenWeights
from nlft_ray.core.saliency import power


@dataclass(frozen=True)
class Chord(Policy):
    """Every token of a correct response weighs p_base·(1 - p_base) (CHORD-φ, arXiv 2508.11408); incorrect ones nothing.

    What the model is sure of, for or against, is left alone; where it wavers, it learns. CHORD takes the probability
    at each step; here it is that of the scored model, so that `refresh` brings it up to date.
    """

    name: Literal["chord"] = "chord"

    def weigh(self, facts: TokenFacts) -> TokenWeights:
        if not facts.correct:
            return TokenWeights.build(np.zeros(facts.n))
        p_base = power(facts.logp_base, 1.0, n=facts.n)
        return TokenWeights.build(p_base * -np.expm1(facts.logp_base.astype(np.float64)))
