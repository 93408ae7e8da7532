"""A micro-batch: padded examples, their weights, and only those positions that predict a token with a weight."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Self

import numpy as np
import torch
from torch import Tensor

from nlft_ray.core.alignment import pad_batch
from nlft_ray.stages.train.examples import Example


@dataclass(frozen=True, eq=False)
class MicroBatch:
    """B examples padded to T positions; M trained tokens with a weight, example after example."""

    input_ids: Tensor
    """(B, T) int64."""
    attention_mask: Tensor
    """(B, T) int64."""
    keep: Tensor
    """(B, T) bool, the M positions whose logits are needed: the LM head runs at no other."""
    targets: Tensor
    """(M,) int64."""
    example: Tensor
    """(M,) int64, row of each token."""
    likelihood: Tensor
    """(M,) float32, weights of -log p."""
    unlikelihood: Tensor
    """(M,) float32, weights of -log(1 - p)."""
    anchor: Tensor
    """(M,) float32, how much of `likelihood` the policy's plain likelihood term brings."""
    tokens_per_example: Tensor
    """(B,) n of each example: all its trained tokens, those without a weight too."""

    @classmethod
    def of(cls, examples: Sequence[Example], pad_id: int) -> Self:
        """Without examples: one row of padding with weight 0, for a worker that has nothing to do but take part."""
        if not examples:
            nothing = np.zeros(1, np.float32)
            examples = [Example("", np.full(2, pad_id, np.int32), 1, nothing, nothing, nothing)]
        batch = pad_batch([(example.input_ids.tolist(), example.response_start) for example in examples], pad_id)
        likelihood, unlikelihood, anchor = (
            torch.from_numpy(np.concatenate([getattr(example, term) for example in examples]))
            for term in ("likelihood", "unlikelihood", "anchor")
        )
        weighted = (likelihood > 0) | (unlikelihood > 0)
        if not weighted.any():
            weighted[0] = True
        keep = torch.zeros_like(batch.keep)
        keep[tuple(batch.keep.nonzero()[weighted].T)] = True
        return cls(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            keep=keep,
            targets=batch.targets[weighted],
            example=batch.example[weighted],
            likelihood=likelihood[weighted],
            unlikelihood=unlikelihood[weighted],
            anchor=anchor[weighted],
            tokens_per_example=torch.tensor([example.n for example in examples]),
        )

    def to(self, device: torch.device) -> Self:
        return type(self)(**{field.name: getattr(self, field.name).to(device) for field in fields(self)})
