"""How sure one can be: intervals over seeds, and comparisons of two models on the same questions. By scipy."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

_CONFIDENCE = 0.95
_RESAMPLES = 9_999


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval."""

    mean: float
    low: float
    high: float


def over_seeds(values: Sequence[float]) -> Interval:
    """Mean over seeds with Student's interval; that of one seed is the value alone, and nobody knows its interval."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return Interval(mean, float("nan"), float("nan"))
    half = stats.t.ppf((1 + _CONFIDENCE) / 2, len(values) - 1) * stats.sem(values)
    return Interval(mean, mean - float(half), mean + float(half))


@dataclass(frozen=True)
class Comparison:
    """Two methods on the same test questions and seeds: the first against the second."""

    difference: Interval
    """Of their accuracies, over questions (paired bootstrap, percentiles)."""
    won: int
    """Answers that the first has right and the second wrong, over all seeds."""
    lost: int
    p: float
    """Of McNemar's exact test: how often that many would be won or lost if neither were better."""


def compare(first: npt.NDArray[np.bool_], second: npt.NDArray[np.bool_], seed: int = 0) -> Comparison:
    """Compare two methods.

    Args:
        first: (seeds, questions), whether the first method's model is right.
        second: the same of the second's.

    Raises:
        ValueError: their shapes differ, or are not (seeds, questions).
    """
    if first.shape != second.shape or first.ndim != 2:
        raise ValueError(f"shapes {first.shape} and {second.shape} are not the same (seeds, questions)")
    won, lost = int((first & ~second).sum()), int((second & ~first).sum())
    per_question = first.mean(axis=0) - second.mean(axis=0)
    p = float(stats.binomtest(won, won + lost, 0.5).pvalue) if won + lost else 1.0
    return Comparison(_bootstrapped(per_question, seed), won, lost, p)


def _bootstrapped(values: npt.NDArray[np.float64], seed: int) -> Interval:
    mean = float(values.mean())
    if len(values) < 2 or np.ptp(values) == 0:
        return Interval(mean, mean, mean)
    result = stats.bootstrap(
        (values,),
        np.mean,
        n_resamples=_RESAMPLES,
        confidence_level=_CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    return Interval(mean, float(result.confidence_interval.low), float(result.confidence_interval.high))
