"""Accuracy and how sure one can be of it."""

from scipy.stats import binomtest


def wilson_interval(correct: int, total: int) -> tuple[float, float]:
    """Wilson 95 % interval of a proportion (Wilson 1927, without continuity correction).

    Raises:
        ValueError: nothing was counted, or more correct than there were.
    """
    interval = binomtest(correct, total).proportion_ci(confidence_level=0.95, method="wilson")
    return float(interval.low), float(interval.high)
