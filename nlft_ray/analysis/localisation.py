"""How well a number per token finds the place that a person marked in a response: pure arithmetic over arrays.

A *finder* gives every token of a response a number: a policy its losing weight, a contrast the difference of two
contexts' log-probabilities. Three measures, each averaged over responses with its 95 % interval (Student's):

share of weight   share of the finder's positive weight that lies on marked tokens
hit rate          how often the token with the largest number is a marked one
area              under the receiver operating curve: how often a marked token has the larger number than one that is
                  not, ties counting half

Chance, for all but the area (one half), is the share of tokens that are marked.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from nlft_ray.core.facts import BoolArray, FloatArray

_CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean over responses with its 95 % interval; NaN where no response has the measure."""

    mean: float
    low: float
    high: float
    responses: int


@dataclass(frozen=True)
class Localisation:
    """The measures of one finder over a table."""

    share_of_weight: Estimate
    """Over the responses in which the finder gives any weight."""
    hit_rate: Estimate
    """Over the same."""
    area: Estimate
    """Over the responses that have marked tokens and others."""
    chance: Estimate
    """Share of marked tokens, over the responses of `share_of_weight`."""


def localise(responses: Iterable[tuple[FloatArray, BoolArray]]) -> Localisation:
    """Measure a finder.

    Args:
        responses: for each, (n,) the finder's numbers and (n,) whether a person marked the token. What is 0 or less is
            no weight.

    Raises:
        ValueError: the two arrays of a response differ in length, or no token is marked.
    """
    shares, hits, areas, chances = [], [], [], []
    for numbers, marked in responses:
        if numbers.shape != marked.shape or not marked.any():
            raise ValueError(f"numbers of shape {numbers.shape}, marks of {marked.shape}, {marked.sum()} tokens marked")
        weight = np.maximum(numbers, 0)
        if weight.any():
            shares.append(weight[marked].sum() / weight.sum())
            hits.append(float(marked[numbers.argmax()]))
            chances.append(marked.mean())
        if not marked.all():
            areas.append(area_under_curve(numbers, marked))
    return Localisation(*(_estimate(values) for values in (shares, hits, areas, chances)))


def area_under_curve(numbers: FloatArray, marked: BoolArray) -> float:
    """Share of pairs of a marked and another token in which the marked one has the larger number (Mann-Whitney)."""
    ranks = stats.rankdata(numbers)
    inside, outside = int(marked.sum()), int((~marked).sum())
    return float((ranks[marked].sum() - inside * (inside + 1) / 2) / (inside * outside))


def smoothed(numbers: FloatArray, width: int) -> npt.NDArray[np.float64]:
    """(n,) the mean over the `width` tokens around each, an odd number; fewer at the ends."""
    if width < 1 or width % 2 == 0:
        raise ValueError(f"width must be odd and at least 1, not {width}")
    sums = np.concatenate([[0.0], np.cumsum(numbers, dtype=np.float64)])
    token = np.arange(len(numbers))
    first, last = np.maximum(token - width // 2, 0), np.minimum(token + width // 2 + 1, len(numbers))
    return (sums[last] - sums[first]) / (last - first)


def marked_tokens(ends: npt.NDArray[np.int64], start: int, end: int) -> BoolArray:
    """(n,) the tokens that have a character of the span [start, end).

    Args:
        ends: (n,) for each token, the number of characters of the response up to its end.
    """
    starts = np.concatenate([[0], ends[:-1]])
    return np.maximum(starts, start) < np.minimum(ends, end)


def _estimate(values: list[float]) -> Estimate:
    if not values:
        return Estimate(float("nan"), float("nan"), float("nan"), 0)
    mean = float(np.mean(values))
    if len(values) < 2:
        return Estimate(mean, float("nan"), float("nan"), len(values))
    half = float(stats.t.ppf((1 + _CONFIDENCE) / 2, len(values) - 1) * stats.sem(values))
    return Estimate(mean, mean - half, mean + half, len(values))
