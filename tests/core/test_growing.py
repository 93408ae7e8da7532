from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nlft_ray.core.growing import grow


def cosine(a, b):
    product = np.linalg.norm(a) * np.linalg.norm(b)
    return a @ b / product if product > 0 else 0.0


def geometry(hidden, window):
    n = len(hidden)
    cos = np.zeros((n, window))
    for t in range(n):
        for k in range(min(window, n - t - 1)):
            cos[t, k] = cosine(hidden[t], hidden[t + k + 1])
    return np.linalg.norm(hidden, axis=1), cos


def reference(saliency, hidden, window, metric, threshold, reset_centre):
    """The walk as it is told, one token after the other, on the hidden states themselves."""

    def takes(centre, h):
        similarity = cosine(centre, h)
        return similarity >= threshold if metric == "similarity" else 1 - similarity > threshold

    near, truncated = np.zeros(len(hidden), dtype=bool), 0
    for seed in np.flatnonzero(saliency):
        centre, first, last, cut = hidden[seed], seed, seed, False
        while first > 0 and not cut:
            if last - (first - 1) > window:
                cut = True
            elif takes(centre, hidden[first - 1]):
                first -= 1
                near[first] = True
                centre = (centre + hidden[first]) / 2
            else:
                break
        left_end = first
        if reset_centre:
            centre, left_end = hidden[seed], seed
        while last < len(hidden) - 1:
            if (last + 1) - left_end > window:
                cut = True
                break
            if not takes(centre, hidden[last + 1]):
                break
            last += 1
            near[last] = True
            centre = (centre + hidden[last]) / 2
        truncated += cut
    return near & ~saliency, truncated


@settings(max_examples=300, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 25),
    window=st.integers(0, 30),
    noise=st.sampled_from([0.1, 0.5, 1.0, 3.0]),
    share=st.sampled_from([0.0, 0.05, 0.3, 1.0]),
    metric=st.sampled_from(["similarity", "distance"]),
    threshold=st.sampled_from([0.05, 0.4, 0.6, 0.9]),
    reset_centre=st.booleans(),
)
def test_equals_the_walk_on_hidden_states(seed, n, window, noise, share, metric, threshold, reset_centre):
    random = np.random.default_rng(seed)
    hidden = random.normal(size=5) + noise * random.normal(size=(n, 5))
    hidden *= random.lognormal(size=(n, 1))  # norms differ, so that a centre is no average of directions
    saliency = random.random(n) < share
    grown = grow(
        saliency,
        *geometry(hidden, window),
        metric=metric,
        threshold=threshold,
        reset_centre=reset_centre,
    )
    near, truncated = reference(saliency, hidden, window, metric, threshold, reset_centre)
    np.testing.assert_array_equal(grown.near, near)
    assert grown.truncated == truncated


def grow_on(hidden, seed, window=8, **rule: Any):
    saliency = np.arange(len(hidden)) == seed
    settings: dict[str, Any] = {"metric": "similarity", "threshold": 0.6, "reset_centre": True} | rule
    return grow(saliency, *geometry(np.array(hidden, dtype=float), window), **settings)


def test_similarity_takes_like_neighbours_and_stops_at_the_first_unlike_one():
    hidden = [[1, 0], [0, 1], [1, 0.1], [1, 0], [1, 0.1], [0, 1], [1, 0]]
    assert grow_on(hidden, seed=3).near.tolist() == [False, False, True, False, True, False, False]


def test_distance_takes_unlike_neighbours():
    hidden = [[1, 0], [0, 1], [1, 0], [1, 0], [0, 1]]
    assert grow_on(hidden, seed=2, metric="distance", threshold=0.4).near.tolist() == [
        False,
        True,
        False,
        False,
        False,
    ]


@pytest.mark.parametrize(("reset_centre", "reached"), [(True, True), (False, False)])
def test_right_walk_starts_from_the_seed_only_if_the_centre_is_reset(reset_centre, reached):
    # the left neighbour turns the centre by 22 degrees, away from the right neighbour 45 degrees off the seed
    hidden = [[1, -1], [1, 0], [1, 1]]
    grown = grow_on(hidden, seed=1, threshold=0.7, reset_centre=reset_centre)
    assert grown.near.tolist() == [True, False, reached]


def test_growth_stops_at_the_window_and_is_counted():
    hidden = np.ones((10, 3))
    grown = grow_on(hidden, seed=0, window=4)
    assert grown.near.tolist() == [False] + [True] * 4 + [False] * 5
    assert grown.truncated == 1
    assert grow_on(hidden, seed=0, window=9).truncated == 0
    # a centre that keeps the left walk's tokens uses up the window for the right walk
    assert grow_on(hidden, seed=3, window=4, reset_centre=False).near.tolist() == [
        *[True] * 3,
        False,
        True,
        *[False] * 5,
    ]


def test_zero_hidden_states_are_unlike_everything():
    hidden = [[0, 0], [1, 0], [0, 0]]
    assert not grow_on(hidden, seed=1).near.any()
    assert grow_on(hidden, seed=1, metric="distance", threshold=0.4).near.sum() == 2
