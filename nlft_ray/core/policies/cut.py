"""Contrastive Unlikelihood Training (arXiv 2312.14591), for comparison."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from nlft_ray.core.facts import TokenFacts
from nlft_ray.core.policies.base import Policy, TokenWeights, option
from nlft_ray.core.saliency import ratio_exceeds


@dataclass(frozen=True)
class Cut(Policy):
    """Lowers the tokens that the judgment makes likelier, raises all others, in correct responses too."""

    name: Literal["cut"] = "cut"
    judge_base_ratio: float = option(
        1.1, "A losing token of an incorrect response has p_judge/p_base above this (CUT).", gt=0
    )
    unlikelihood_weight: float = option(1.0, "Weight with which losing tokens are lowered (CUT).", ge=0)

    def weigh(self, facts: TokenFacts) -> TokenWeights:
        if facts.logp_judge is None:
            return TokenWeights.build(np.ones(facts.n))
        losing = ratio_exceeds(facts.logp_judge, facts.logp_base, self.judge_base_ratio)
        weight = np.where(losing, self.unlikelihood_weight, 1.0)
        return TokenWeights.build(weight, saliency=losing, lowered=losing)
