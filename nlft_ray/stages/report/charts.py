"""Line charts as coordinates; the template draws them as inline SVG."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from nlft_ray.analysis.accuracy import readable

WIDTH, HEIGHT = 320.0, 120.0
_CURVES = (
    ("loss_likelihood", "Loss: raising tokens"),
    ("loss_unlikelihood", "Loss: lowering tokens"),
    ("loss_anchor", "Loss: anchor (plain likelihood of correct responses)"),
    ("held_out_loss", "Loss on held-out examples"),
    ("gradient_norm", "Gradient norm"),
    ("learning_rate", "Learning rate"),
    ("weighted_tokens", "Weighted tokens a step"),
)
_POINTS_DRAWN = 400
_FLATTENED = 20.0


@dataclass(frozen=True)
class Line:
    """One policy's course."""

    name: str
    number: int
    """Decides colour and dashes."""
    points: str
    """For an SVG polyline."""
    last: str
    """The last value, for reading."""


@dataclass(frozen=True)
class Chart:
    """A small line chart over optimizer steps."""

    title: str
    lines: list[Line]
    ticks: list[tuple[float, str]]
    """(y, label)"""
    steps: int


def training_charts(metrics: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Chart]:
    """A chart for each quantity that training records, with a line for each policy."""
    charts = [_chart(key, title, metrics) for key, title in _CURVES]
    return [chart for chart in charts if chart is not None]


def _chart(key: str, title: str, metrics: Mapping[str, Sequence[Mapping[str, Any]]]) -> Chart | None:
    series = {name: _finite(key, lines) for name, lines in metrics.items()}
    values = [value for points in series.values() for _, value in points]
    if not any(value > 0 for value in values):  # nothing was recorded, or nothing happened: no policy lowers a token
        return None
    steps = max(step for points in series.values() for step, _ in points)
    scale = _scale(series)
    lines = [
        Line(name, number, _points(points, steps, scale), readable(points[-1][1]))
        for number, (name, points) in enumerate(series.items())
        if points
    ]
    ticks = [(HEIGHT * (1 - scale.share(value)), readable(value)) for value in scale.ticks]
    return Chart(title if scale.bottom == 0 else f"{title}, logarithmic", lines, ticks, steps)


@dataclass(frozen=True)
class _Scale:
    """From `bottom` to `top`: linear where the bottom is 0, else logarithmic."""

    bottom: float
    top: float

    @property
    def ticks(self) -> list[float]:
        if self.bottom == 0:
            return [0.0, self.top / 2, self.top]
        return [10.0**power for power in range(round(math.log10(self.bottom)), round(math.log10(self.top)) + 1)]

    def share(self, value: float) -> float:
        """Height of a value, 0 to 1; what lies below the bottom lies on it."""
        if self.bottom == 0:
            return max(value, 0.0) / self.top
        return math.log(max(value, self.bottom) / self.bottom) / math.log(self.top / self.bottom)


def _scale(series: Mapping[str, Sequence[tuple[int, float]]]) -> _Scale:
    """The scale of a chart: logarithmic where one policy's values would flatten another's; four decades at most."""
    by_line = [[value for _, value in points if value > 0] for points in series.values()]
    highest = max(value for values in by_line for value in values)
    typical = [median(values) for values in by_line if values]
    if max(typical) < _FLATTENED * min(typical):
        return _Scale(0.0, _round_up(highest))
    top = math.ceil(math.log10(highest))
    bottom = max(math.floor(math.log10(min(typical))), top - 4)
    return _Scale(10.0**bottom, 10.0**top)


def _finite(key: str, lines: Sequence[Mapping[str, Any]]) -> list[tuple[int, float]]:
    points = [(line["step"], line.get(key)) for line in lines]
    return [(step, float(value)) for step, value in points if value is not None and math.isfinite(value)]


def _points(points: Sequence[tuple[int, float]], steps: int, scale: _Scale) -> str:
    """Averages over equal stretches where there are more steps than the picture can show."""
    stretch = -(-len(points) // _POINTS_DRAWN)
    drawn = []
    for start in range(0, len(points), stretch):
        part = points[start : start + stretch]
        step, value = (sum(column) / len(part) for column in zip(*part, strict=True))
        x = WIDTH * (step - 1) / max(steps - 1, 1)
        drawn.append(f"{x:.1f},{HEIGHT * (1 - scale.share(value)):.1f}")
    return " ".join(drawn)


def _round_up(value: float) -> float:
    """The next round number, whose half is round too."""
    power = 10.0 ** math.floor(math.log10(value))
    factors = (1, 1.2, 1.6, 2, 2.4, 3, 4, 5, 6, 8, 10)
    return next(factor * power for factor in factors if factor * power >= value * (1 - 1e-9))
