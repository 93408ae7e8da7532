"""A row's contexts share the question; as a tree, it runs through the model once.

What a row's prompts have in common is the trunk, the rest of each prompt with the response a branch. Trunks and
branches of many rows stand one after another in a single sequence, without padding; attention (attention.py) goes
segment by segment, over what comes before each token in its own context.
"""

from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass(frozen=True)
class Tree:
    """Prompts that share their beginning, each with its response. Nothing of a branch is empty."""

    trunk: list[int]
    branches: list[tuple[list[int], list[int]]]  # the prompt's rest, the response

    def __len__(self) -> int:
        """Tokens that run: a response's last token predicts nothing that is asked for."""
        return len(self.trunk) + sum(len(rest) + len(response) - 1 for rest, response in self.branches)


@dataclass(frozen=True)
class Segment:
    """Consecutive tokens: each attends to the tokens before it here, and to all that the segment continues."""

    own: slice  # among the N tokens of the pass
    reads: tuple[slice, ...]  # among the stored keys and those of the pass, in order of position, own ones last


@dataclass
class Forest:
    """N tokens of trees; `stored` tokens that all of them continue have run before."""

    stored: int
    ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    keep: list[int] = field(default_factory=list)  # the positions that predict response tokens, branch after branch
    targets: list[int] = field(default_factory=list)  # the response tokens
    segments: list[Segment] = field(default_factory=list)

    def plant(self, tree: Tree) -> None:
        before: tuple[slice, ...] = (slice(0, self.stored),) if self.stored else ()
        if tree.trunk:
            before = self._grow(tree.trunk, before)
        for rest, response in tree.branches:
            self._grow([*rest, *response[:-1]], before)
            self.keep.extend(range(len(self.ids) - len(response), len(self.ids)))
            self.targets.extend(response)

    def _grow(self, tokens: list[int], before: tuple[slice, ...]) -> tuple[slice, ...]:
        """Add a segment that continues `before`; returns what a continuation of it has before itself."""
        own = slice(len(self.ids), len(self.ids) + len(tokens))
        seen = sum(part.stop - part.start for part in before)
        self.ids.extend(tokens)
        self.positions.extend(range(seen, seen + len(tokens)))
        reads = (*before, slice(own.start + self.stored, own.stop + self.stored))
        self.segments.append(Segment(own, reads))
        return reads

    def keep_mask(self) -> torch.Tensor:
        """(1, N) bool, the positions to keep."""
        return torch.zeros(1, len(self.ids), dtype=torch.bool).index_fill_(1, torch.tensor(self.keep), True)

    def inputs(self) -> dict[str, Any]:
        """Arguments of the model's forward."""
        return {
            "input_ids": torch.tensor([self.ids]),
            "position_ids": torch.tensor([self.positions]),
            "attention_mask": torch.empty(1, 1, 0, 0),  # given, so that none is made; not read
            "tree_segments": self.segments,
        }
