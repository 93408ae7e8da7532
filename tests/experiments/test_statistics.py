"""Intervals and comparisons against numbers worked out by hand."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra import numpy as arrays

from experiments.statistics import compare, over_seeds

pytestmark = pytest.mark.unit


def test_three_seeds_have_the_interval_of_students_distribution() -> None:
    """Mean 0.5, standard error 0.1/√3, and 4.3027 is the 97.5 % point of two degrees of freedom."""
    found = over_seeds([0.4, 0.5, 0.6])
    half = 4.302652729911275 * 0.1 / math.sqrt(3)
    assert (found.mean, found.low, found.high) == pytest.approx((0.5, 0.5 - half, 0.5 + half))


def test_nobody_knows_the_interval_of_one_seed() -> None:
    found = over_seeds([0.7])
    assert found.mean == 0.7
    assert math.isnan(found.low)
    assert math.isnan(found.high)


def test_mcnemar_counts_the_questions_that_only_one_solves() -> None:
    """5 won and 1 lost: 2·(1 + 6)/2^6 = 0.21875 by the exact test."""
    first = np.array([[True] * 5 + [False] + [True, False]])
    second = np.array([[False] * 5 + [True] + [True, False]])
    found = compare(first, second)
    assert (found.won, found.lost) == (5, 1)
    assert found.p == pytest.approx(0.21875)
    assert found.difference.mean == pytest.approx(0.5)


def test_the_same_answers_differ_by_nothing() -> None:
    answers = np.array([[True, False, True], [False, False, True]])
    found = compare(answers, answers)
    assert (found.won, found.lost, found.p) == (0, 0, 1.0)
    assert (found.difference.low, found.difference.high) == (0, 0)


@given(arrays.arrays(bool, (2, 12)), arrays.arrays(bool, (2, 12)))
def test_comparing_the_other_way_round_turns_the_signs(first: np.ndarray, second: np.ndarray) -> None:
    there, back = compare(first, second), compare(second, first)
    assert (there.won, there.lost, there.p) == (back.lost, back.won, back.p)
    assert there.difference.mean == pytest.approx(-back.difference.mean)
    assert there.difference.low - 1e-12 <= there.difference.mean <= there.difference.high + 1e-12


def test_shapes_must_fit() -> None:
    with pytest.raises(ValueError, match="not the same"):
        compare(np.zeros((1, 3), bool), np.zeros((1, 4), bool))
