"""Measures of localisation: by hand on small cases, and what must hold for any numbers."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from nlft_ray.analysis.localisation import area_under_curve, localise, marked_tokens, smoothed


def test_by_hand() -> None:
    marked = np.array([False, True, True, False])
    found = localise([(np.array([1.0, 3.0, 0.0, -2.0]), marked), (np.array([5.0, 1.0, 2.0, 0.0]), marked)])
    assert found.share_of_weight.mean == pytest.approx((3 / 4 + 3 / 8) / 2)
    assert found.hit_rate.mean == pytest.approx(1 / 2)
    assert found.area.mean == pytest.approx((3 / 4 + 2 / 4) / 2)
    assert found.chance.mean == pytest.approx(1 / 2)
    assert found.area.responses == 2


def test_a_response_without_weight_has_neither_share_nor_hit() -> None:
    found = localise([(np.array([0.0, -1.0]), np.array([True, False]))])
    assert found.share_of_weight.responses == 0
    assert math.isnan(found.hit_rate.mean)
    assert found.area.mean == 1.0


def test_a_response_without_a_mark_is_an_error() -> None:
    with pytest.raises(ValueError, match="0 tokens marked"):
        localise([(np.ones(2), np.zeros(2, bool))])


@st.composite
def responses(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    n = draw(st.integers(2, 20))
    marked = draw(arrays(bool, n).filter(lambda marks: 0 < marks.sum() < len(marks)))
    return draw(arrays(np.float64, n, elements=st.integers(-5, 5).map(float))), marked


@given(responses())
def test_the_area_counts_pairs(response: tuple[np.ndarray, np.ndarray]) -> None:
    numbers, marked = response
    pairs = [(a > b) + (a == b) / 2 for a in numbers[marked] for b in numbers[~marked]]
    assert area_under_curve(numbers, marked) == pytest.approx(np.mean(pairs))
    assert area_under_curve(-numbers, marked) == pytest.approx(1 - np.mean(pairs))


@given(
    st.integers(1, 12).flatmap(lambda n: arrays(np.float64, n, elements=st.floats(-9, 9))), st.sampled_from([1, 3, 9])
)
def test_smoothing_is_the_mean_of_the_neighbours(numbers: np.ndarray, width: int) -> None:
    half = width // 2
    wanted = [numbers[max(0, t - half) : t + half + 1].mean() for t in range(len(numbers))]
    np.testing.assert_allclose(smoothed(numbers, width), wanted, atol=1e-12)


def test_tokens_that_touch_the_span_are_marked() -> None:
    ends = np.array([2, 5, 5, 9])  # the third has no character of its own
    assert marked_tokens(ends, 2, 5).tolist() == [False, True, False, False]
    assert marked_tokens(ends, 4, 6).tolist() == [False, True, False, True]
