"""A row's contexts share the question; as a tree, it runs through the model once.

What a row's prompts have in common is the trunk, the rest of each prompt with the response a branch. Trunks and
branches of many rows stand one after another in a single sequence (nlft_ray/models/packing.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedModel

from nlft_ray.models.packing import PackedTexts, attend_by_segments, keeps_every_token, moved


@dataclass(frozen=True)
class Tree:
    """Prompts that share their beginning, each with its response. Nothing of a branch is empty."""

    trunk: list[int]
    branches: list[tuple[list[int], list[int]]]  # the prompt's rest, the response

    def __len__(self) -> int:
        """Tokens that run: a response's last token predicts nothing that is asked for."""
        return len(self.trunk) + sum(len(rest) + len(response) - 1 for rest, response in self.branches)


@dataclass
class Forest:
    """Trees in one pass."""

    texts: PackedTexts
    keep: list[int] = field(default_factory=list)  # the positions that predict response tokens, branch after branch
    targets: list[int] = field(default_factory=list)  # the response tokens

    @classmethod
    def of(cls, trees: Sequence[Tree], stored: int) -> "Forest":
        """`stored` tokens that all trees continue have run before."""
        forest = cls(PackedTexts(stored))
        for tree in trees:
            forest._plant(tree)
        return forest

    def _plant(self, tree: Tree) -> None:
        trunk = self.texts.beginning
        if tree.trunk:
            trunk = self.texts.append(tree.trunk, trunk)
        for rest, response in tree.branches:
            self.texts.append([*rest, *response[:-1]], trunk)
            end = len(self.texts.ids)
            self.keep.extend(range(end - len(response), end))
            self.targets.extend(response)

    def keep_mask(self) -> torch.Tensor:
        """(1, N) bool, the positions to keep."""
        return torch.zeros(1, len(self.texts.ids), dtype=torch.bool).index_fill_(1, torch.tensor(self.keep), True)


@torch.inference_mode()
def takes_trees(model: PreTrainedModel) -> bool:
    """Make the model read trees, if it tells the same of a branch as of the branch alone.

    That is tried on a small tree, for there are many ways of attending: with position biases, windows, states.
    """
    trunk, rests = [1, 2, 3], [[1, 3], [2, 0, 1]]
    alone = [model(torch.tensor([trunk + rest], device=model.device), use_cache=True) for rest in rests]
    if not all(keeps_every_token(output.get("past_key_values")) for output in alone) or not attend_by_segments(model):
        return False
    forest = Forest.of([Tree(trunk, [(rest[:-1], rest[-1:]) for rest in rests])], stored=0)
    inputs: dict[str, Any] = moved(forest.texts.inputs(), model.device)
    found = model(**inputs).logits[0, forest.keep].float()
    wanted = torch.stack([output.logits[0, -2] for output in alone]).float()
    tolerance = torch.finfo(model.dtype).eps ** 0.5 * wanted.abs().max()
    if bool((found - wanted).abs().max() <= tolerance):
        return True
    model.set_attn_implementation("sdpa")
    return False
