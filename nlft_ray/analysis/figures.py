"""Figures of a scored table: verdicts, tokens, and weights under each policy. Rows are read a few at a time."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from nlft_ray.core.policies import Policy, TokenWeights
from nlft_ray.storage.folder import Folder
from nlft_ray.tables.scored import facts_of, read_facts

_EDGES = np.array([0.25, 0.5, 0.75, 1.0, 1.5, 2.0])
BINS = ("lowered", "0", "to 0.25", "to 0.5", "to 0.75", "to 1", "to 1.5", "to 2", "above 2")
"""Classes of a token's weight: lowered by any weight, left alone, or raised by up to so much."""


@dataclass
class PolicyFigures:
    """Response tokens of a whole table, counted by their role and weight under a policy."""

    scoring: int = 0
    """Tokens with the role scoring."""
    losing: int = 0
    """Tokens with the role losing."""
    without_weight: int = 0
    """Tokens that add nothing to the loss, neither by their weight nor by the anchor."""
    histogram: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(len(BINS), np.int64))
    """Tokens of each of the BINS."""

    def add(self, weights: TokenWeights) -> None:
        """Count one response's tokens."""
        roles, sign = weights.roles, weights.sign
        self.scoring += int((roles == "scoring").sum())
        self.losing += int((roles == "losing").sum())
        self.without_weight += int((weights.likelihood + weights.unlikelihood == 0).sum())
        bins = np.where(sign < 0, 0, np.where(sign == 0, 1, 2 + np.searchsorted(_EDGES, weights.weight)))
        self.histogram += np.bincount(bins, minlength=len(BINS))


@dataclass
class TableFigures:
    """Sums over a scored table."""

    by_policy: dict[str, PolicyFigures]
    verdicts: Counter[str] = field(default_factory=Counter)
    """Rows of each verdict."""
    response_tokens: int = 0
    without_standard_answer: int = 0
    """Rows whose question has no standard answer."""

    @property
    def rows(self) -> int:
        return self.verdicts.total()


def figures_of(folder: Folder, policies: Sequence[Policy]) -> TableFigures:
    """Sum up a scored folder in one pass over its rows.

    Args:
        folder: the scored folder.
        policies: the policies to weigh with, all of the target `response`.
    """
    figures = TableFigures({policy.name: PolicyFigures() for policy in policies})
    for row in read_facts(folder):
        facts = facts_of(row)
        figures.verdicts[row["verdict"]] += 1
        figures.response_tokens += facts.n
        figures.without_standard_answer += facts.logp_standard is None
        for policy in policies:
            figures.by_policy[policy.name].add(policy.weigh(facts))
    return figures
