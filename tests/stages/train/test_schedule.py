"""Values of the learning rate."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nlft_ray.stages.train.schedule import learning_rate


def rates(steps: int = 10, **changes: Any) -> list[float]:
    settings: dict[str, Any] = {"highest": 1.0, "schedule": "cosine", "warmup_fraction": 0.2} | changes
    return [learning_rate(step, steps=steps, **settings) for step in range(steps)]


def test_cosine_by_hand() -> None:
    values = rates()
    assert values[:3] == pytest.approx([1 / 3, 2 / 3, 1])
    assert values[6] == pytest.approx(0.5)  # half way down
    assert values[9] == pytest.approx(0.0380602337)


def test_linear_by_hand() -> None:
    assert rates(schedule="linear")[2:] == pytest.approx([1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8])


def test_constant_stays_after_the_warmup() -> None:
    assert rates(schedule="constant") == pytest.approx([1 / 3, 2 / 3] + [1] * 8)


@given(
    steps=st.integers(1, 200),
    schedule=st.sampled_from(["cosine", "linear", "constant"]),
    warmup_fraction=st.floats(0, 1),
)
def test_no_step_is_wasted_and_none_exceeds_the_highest(steps: int, schedule: str, warmup_fraction: float) -> None:
    values = rates(steps, schedule=schedule, warmup_fraction=warmup_fraction)
    assert all(0 < value <= 1 for value in values)
