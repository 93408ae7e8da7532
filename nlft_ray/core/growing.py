"""Growing: from each saliency token, walk left and then right over neighbours, taking them in.

The walk keeps a centre, at first the seed's hidden state, and moves it to the middle between itself and every
neighbour that it takes in: c <- (c + h)/2. The centre is thus a weighted sum of the hidden states around the
seed, so its cosine to the next neighbour follows from their norms and pairwise cosines; the hidden states are
not needed. All seeds walk at once, one step at a time.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from nlft_ray.core.facts import BoolArray, FloatArray

Metric = Literal["similarity", "distance"]
_Indices = npt.NDArray[np.intp]


@dataclass(frozen=True, eq=False)
class Grown:
    """Result of growing."""

    near: BoolArray
    """(n,) tokens that a walk took in and that are not saliency tokens themselves."""
    truncated: int
    """Number of seeds whose walk stopped because it would have needed a cosine beyond the stored window."""


def grow(
    saliency: BoolArray,
    hidden_norm: FloatArray,
    hidden_cos: FloatArray,
    *,
    metric: Metric,
    threshold: float,
    reset_centre: bool,
) -> Grown:
    """Grow from every saliency token.

    Args:
        saliency: (n,) the seeds.
        hidden_norm: (n,) norms of the hidden states.
        hidden_cos: (n, K) cosine of each token's hidden state to those of the K tokens after it.
        metric: "similarity" takes a neighbour in while its cosine to the centre is at least `threshold`;
            "distance" while one minus that cosine is above `threshold`, as the released code does.
        threshold: see `metric`.
        reset_centre: whether the right walk starts from the seed again, or, as in the released code, from the
            centre that the left walk ended with.

    Time is O(seeds x K^2), memory O(n x K).
    """
    seeds = np.flatnonzero(saliency)
    walk = _Walk(seeds, hidden_norm, hidden_cos, metric, threshold)
    left, cut_left = walk.go(-1, behind=np.zeros_like(seeds))
    if reset_centre:
        walk.centre_on_seeds()
    right, cut_right = walk.go(+1, behind=np.zeros_like(seeds) if reset_centre else left)

    # +1 where a walked range begins, -1 after its end: the running sum counts the ranges that cover a token
    edges = np.zeros(len(saliency) + 1, dtype=np.int64)
    np.add.at(edges, seeds - left, 1)
    np.add.at(edges, seeds + right + 1, -1)
    covered = np.cumsum(edges[:-1]) > 0
    return Grown(near=covered & ~saliency, truncated=int((cut_left | cut_right).sum()))


class _Walk:
    """The walks of all S seeds, and their centres.

    A centre is held as `parts` (S, 2K + 1), whose column K + m is the length that the hidden state of token
    seed + m contributes to it, and as `square` (S,), its squared norm.
    """

    def __init__(
        self,
        seeds: _Indices,
        hidden_norm: FloatArray,
        hidden_cos: FloatArray,
        metric: Metric,
        threshold: float,
    ) -> None:
        self.seeds, self.metric, self.threshold = seeds, metric, threshold
        self.norm = hidden_norm.astype(np.float64)
        self.cos = _cosines_to_both_sides(hidden_cos)
        self.window = hidden_cos.shape[1]
        self.centre_on_seeds()

    def centre_on_seeds(self) -> None:
        self.parts = np.zeros((len(self.seeds), 2 * self.window + 1))
        self.parts[:, self.window] = self.norm[self.seeds]
        self.square = self.norm[self.seeds] ** 2

    def go(self, direction: Literal[-1, 1], behind: _Indices) -> tuple[_Indices, BoolArray]:
        """Walk one way until every seed has stopped.

        Args:
            direction: -1 is left, +1 right.
            behind: (S,) how far the tokens in each centre already reach to the other side of the seed.

        Returns:
            (S,) how many tokens were taken in, and (S,) whether the window ended the walk.
        """
        reach = np.zeros_like(self.seeds)
        cut = np.zeros(len(self.seeds), dtype=bool)
        walking = np.arange(len(self.seeds))
        for step in range(1, self.window + 2):
            neighbour = self.seeds[walking] + direction * step
            walking = walking[(neighbour >= 0) & (neighbour < len(self.norm))]
            beyond = behind[walking] + step > self.window
            cut[walking[beyond]] = True
            walking = walking[~beyond]
            if not walking.size:
                break
            walking = self._take_in(walking, direction * step)
            reach[walking] = step
        return reach, cut

    def _take_in(self, walking: _Indices, offset: int) -> _Indices:
        """Move the centres of the seeds that take in the token at `offset` from them; return those seeds."""
        neighbour = self.seeds[walking] + offset
        # parts are placed around the seed, cosines around the neighbour: shift one against the other
        width = 2 * self.window + 1
        of_parts = slice(max(offset, 0), width + min(offset, 0))
        of_cos = slice(max(-offset, 0), width + min(-offset, 0))
        projection = (self.parts[walking, of_parts] * self.cos[neighbour, of_cos]).sum(1)

        length = np.sqrt(np.maximum(self.square[walking], 0.0))  # rounding may leave a tiny negative square
        similarity = np.divide(projection, length, out=np.zeros_like(length), where=length > 0)
        by_similarity = self.metric == "similarity"
        takes = similarity >= self.threshold if by_similarity else 1 - similarity > self.threshold

        walking, norm, projection = walking[takes], self.norm[neighbour[takes]], projection[takes]
        self.parts[walking] /= 2
        self.parts[walking, self.window + offset] = norm / 2
        self.square[walking] = (self.square[walking] + 2 * norm * projection + norm**2) / 4
        return walking


def _cosines_to_both_sides(hidden_cos: FloatArray) -> FloatArray:
    """(n, K) cosines to the next tokens -> (n, 2K + 1): column K + m is the cosine of tokens t and t + m."""
    n, window = hidden_cos.shape
    both = np.zeros((n, 2 * window + 1))
    both[:, window] = 1.0
    both[:, window + 1 :] = hidden_cos
    for gap in range(1, min(window, n - 1) + 1):
        both[gap:, window - gap] = hidden_cos[:-gap, gap - 1]
    return both
