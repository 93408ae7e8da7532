"""The rules of Natural Language Fine-Tuning (arXiv 2412.20382), which several policies share.

Where a row has no standard answer, conditions on p_standard drop out and weights made of it are 1; then no
token of a correct response stands out as a scoring token.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from nlft_ray.core.facts import BoolArray, TokenFacts
from nlft_ray.core.growing import Grown, grow
from nlft_ray.core.policies.base import Policy, TokenWeights, option
from nlft_ray.core.saliency import power, ratio_exceeds, sigmoid_of_ratio


@dataclass(frozen=True)
class CorrectRule(Policy):
    """The rule for a correct response: tokens that the standard context is sure of weigh most."""

    theta: float = option(
        0.95, "Tokens of a correct response are scoring tokens where p_standard > theta (θ).", gt=0, lt=1
    )
    scoring_exponent: float = option(
        5.0, "Scoring tokens weigh 1 + ((p_standard - theta)/(1 - theta))^this (released code).", ge=0
    )
    near_exponent: float = option(
        0.3, "Tokens near a scoring token weigh (p_standard/theta)^this (released code).", ge=0
    )
    elsewhere_exponent: float = option(
        0.6, "Other tokens of a correct response weigh (p_standard/theta)^this (released code).", ge=0
    )
    growing: bool = option(True, "Whether saliency tokens take in their neighbours (near tokens).")
    growing_metric: Literal["similarity", "distance"] = option(
        "similarity",
        "Growing takes in a neighbour whose hidden state has, to the running centre, a cosine similarity of "
        "at least growing_threshold, or a cosine distance above it.",
    )
    growing_threshold: float = option(0.6, "See growing_metric; a similarity is in [-1, 1], a distance in [0, 2].")
    reset_centre: bool = option(
        True,
        "Whether growing to the right starts from the saliency token, not from where the left walk ended.",
    )
    anchor: float = option(
        1.0,
        "Weight of the plain likelihood term added to every token of a correct response (released code: 1). "
        "An incorrect response gets none.",
        ge=0,
    )

    def weigh_correct(self, facts: TokenFacts) -> TokenWeights:
        """Weights of a correct response; every token is raised."""
        if facts.p_standard is None:
            return TokenWeights.build(np.ones(facts.n), anchor=self.anchor)
        scoring = facts.p_standard > self.theta
        grown = self.grow(scoring, facts)
        over = np.maximum(facts.p_standard.astype(np.float64) - self.theta, 0.0) / (1.0 - self.theta)
        near = power(facts.logp_standard, self.near_exponent, n=facts.n, scale=self.theta)
        elsewhere = power(facts.logp_standard, self.elsewhere_exponent, n=facts.n, scale=self.theta)
        weight = np.where(scoring, 1.0 + over**self.scoring_exponent, np.where(grown.near, near, elsewhere))
        return TokenWeights.build(weight, saliency=scoring, grown=grown, anchor=self.anchor)

    def grow(self, saliency: BoolArray, facts: TokenFacts) -> Grown:
        """The tokens near the saliency tokens; none where growing is off."""
        if not self.growing:
            return Grown(near=np.zeros(facts.n, dtype=bool), truncated=0)
        return grow(
            saliency,
            facts.hidden_norm,
            facts.hidden_cos,
            metric=self.growing_metric,
            threshold=self.growing_threshold,
            reset_centre=self.reset_centre,
        )


@dataclass(frozen=True)
class SaliencyRule(CorrectRule):
    """The rule for an incorrect response too: tokens that the judgment makes likelier are lowered.

    The released code also adds a likelihood term to an incorrect response, but pairs the judge prompt's
    probabilities with the base prompt's labels, so that positions do not match. That is not copied: the
    anchor is 0 there.
    """

    tau: float = option(
        1.5, "Losing tokens weigh 2 sigmoid(p_judge/p_base - tau) (τ; the released run script's value).", ge=0
    )
    judge_base_ratio: float = option(
        1.5, "A losing token of an incorrect response needs p_judge/p_base above this (released code).", gt=0
    )
    judge_standard_ratio: float = option(1.5, "It also needs p_judge/p_standard above this (released code).", gt=0)
    min_p_judge: float = option(0.01, "It also needs p_judge above this (released code).", ge=0, le=1)
    max_losing_share: float = option(
        0.06,
        "Where more than this share of an incorrect response's tokens are losing, no other token is raised "
        "(released code).",
        ge=0,
        le=1,
    )
    incorrect_exponent: float = option(
        0.5, "Other tokens of an incorrect response weigh p_standard^this (released code).", ge=0
    )

    def weigh(self, facts: TokenFacts) -> TokenWeights:
        return self.weigh_correct(facts) if facts.correct else self.weigh_incorrect(facts)

    def weigh_incorrect(self, facts: TokenFacts) -> TokenWeights:
        """Weights of an incorrect response: losing tokens are lowered, near ones left alone, others raised."""
        logp_judge = facts.logp_judge
        assert logp_judge is not None  # TokenFacts sees to it
        losing = (
            ratio_exceeds(logp_judge, facts.logp_base, self.judge_base_ratio)
            & ratio_exceeds(logp_judge, facts.logp_standard, self.judge_standard_ratio)
            & (np.exp(logp_judge) > self.min_p_judge)
        )
        grown = self.grow(losing, facts)
        elsewhere = power(facts.logp_standard, self.incorrect_exponent, n=facts.n)
        if losing.mean() > self.max_losing_share:
            elsewhere = np.zeros(facts.n)
        lowering = 2.0 * sigmoid_of_ratio(logp_judge, facts.logp_base, self.tau)
        weight = np.where(losing, lowering, np.where(grown.near, 0.0, elsewhere))
        return TokenWeights.build(weight, saliency=losing, lowered=losing, grown=grown)
