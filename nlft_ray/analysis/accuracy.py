"""Figures that the page, the Markdown and the model card share."""

from collections.abc import Sequence
from dataclasses import dataclass

from nlft_ray.analysis.run import StageRecord


@dataclass(frozen=True)
class Accuracy:
    """Accuracy of one evaluation with its 95 % interval, in percent."""

    name: str
    value: float
    low: float
    high: float
    correct: int
    total: int

    def __str__(self) -> str:
        return f"{self.value:.1f} % (95 % interval {self.low:.1f} to {self.high:.1f} %)"


def accuracies(evaluations: Sequence[StageRecord]) -> list[Accuracy]:
    """Accuracy of each complete evaluation, in order."""
    return [accuracy(record) for record in evaluations if "accuracy" in record.manifest.counts]


def accuracy(evaluation: StageRecord) -> Accuracy:
    """Accuracy of a complete evaluation."""
    counts = evaluation.manifest.counts
    return Accuracy(
        name=evaluation.leaf,
        value=100 * counts["accuracy"],
        low=100 * counts["accuracy_low"],
        high=100 * counts["accuracy_high"],
        correct=int(counts["correct"]),
        total=evaluation.manifest.rows_out,
    )


def readable(value: float) -> str:
    """Three significant digits; powers of ten where the number is very small."""
    if value == 0 or 1e-3 <= abs(value) < 1e6:
        return f"{value:,.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:.2g}"
