"""A policy that lowers only the token where the mistake began."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from nlft_ray.core.facts import TokenFacts
from nlft_ray.core.policies.base import TokenWeights, option
from nlft_ray.core.policies.rules import CorrectRule
from nlft_ray.core.saliency import power, ratio_exceeds


@dataclass(frozen=True)
class Origin(CorrectRule):
    """Lowers the first token of an incorrect response that the judge context likes, the standard one not.

    p_judge/p_base > 1.5 can only hold where p_base < 0.67, so `nlft` never lowers a mistake made with
    confidence; this policy does not look at p_base. What follows the mistake is right given the mistake, and
    is left alone. Correct responses are weighted as under `nlft`. An incorrect response without a standard
    answer shows no origin: it gets no weight.
    """

    name: Literal["origin"] = "origin"
    judge_standard_ratio: float = option(5.0, "The origin of a mistake has p_judge/p_standard above this.", gt=0)
    min_p_judge: float = option(0.1, "It also has p_judge above this.", ge=0, le=1)
    origin_weight: float = option(1.0, "Weight with which the origin is lowered.", ge=0)
    incorrect_exponent: float = option(0.5, "Tokens before the origin weigh p_standard^this.", ge=0)

    def weigh(self, facts: TokenFacts) -> TokenWeights:
        return self.weigh_correct(facts) if facts.correct else self.weigh_incorrect(facts)

    def weigh_incorrect(self, facts: TokenFacts) -> TokenWeights:
        """Weights of an incorrect response. Where no token is an origin, all tokens count as before it."""
        if facts.logp_standard is None:
            return TokenWeights.build(np.zeros(facts.n))
        logp_judge = facts.logp_judge
        assert logp_judge is not None  # TokenFacts sees to it
        candidates = ratio_exceeds(logp_judge, facts.logp_standard, self.judge_standard_ratio)
        candidates &= np.exp(logp_judge) > self.min_p_judge
        count = np.cumsum(candidates)  # candidates up to and including each token
        origin = candidates & (count == 1)
        before = power(facts.logp_standard, self.incorrect_exponent, n=facts.n)
        weight = np.where(origin, self.origin_weight, np.where(count == 0, before, 0.0))
        return TokenWeights.build(weight, saliency=origin, lowered=origin)
