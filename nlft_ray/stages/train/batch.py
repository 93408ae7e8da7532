"""A micro-batch: examples side by side or one after another, and those positions that predict a token with a weight."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from nlft_ray.core.prefix import common_prefix_length
from nlft_ray.models.packing import PackedTexts, moved
from nlft_ray.stages.train.examples import Example


@dataclass(frozen=True, eq=False)
class MicroBatch:
    """Up to B examples on (R, T) positions; M trained tokens with a weight, example after example.

    What stands behind an example's last weighted token changes nothing, so it does not run.
    """

    inputs: dict[str, Any]
    """Arguments of the model's forward: (R, T) ids and what belongs to them. R is B where rows are padded, else 1."""
    keep: Tensor
    """(R, T) bool, the M positions whose logits are needed: the LM head runs at no other."""
    targets: Tensor
    """(M,) int64."""
    example: Tensor
    """(M,) int64, which of the examples each token belongs to."""
    likelihood: Tensor
    """(M,) float32, weights of -log p."""
    unlikelihood: Tensor
    """(M,) float32, weights of -log(1 - p)."""
    anchor: Tensor
    """(M,) float32, how much of `likelihood` the policy's plain likelihood term brings."""
    tokens_per_example: Tensor
    """(B,) n of each example: all its trained tokens, those without a weight too."""

    @classmethod
    def of(cls, examples: Sequence[Example], pad_id: int, *, packed: bool) -> Self:
        """Without examples: one token with weight 0, for a worker that has nothing to do but take part."""
        if not examples:
            nothing = np.zeros(1, np.float32)
            examples = [Example("", np.full(2, pad_id, np.int32), 1, nothing, nothing, nothing)]
        trained = [_trained(example) for example in examples]
        rows = [
            example.input_ids[: example.response_start + int(tokens[-1])].tolist()
            for example, tokens in zip(examples, trained, strict=True)
        ]
        if packed:
            prompts = [example.input_ids[: example.response_start].tolist() for example in examples]
            inputs, starts = packed_inputs(rows, common_prefix_length(prompts) if len(rows) > 1 else 0)
        else:
            inputs = _padded_inputs(rows, pad_id)
            starts = [row * inputs["input_ids"].shape[1] for row in range(len(rows))]
        keep = torch.zeros(inputs["input_ids"].numel(), dtype=torch.bool)
        for example, tokens, start in zip(examples, trained, starts, strict=True):
            keep[start + example.response_start - 1 + tokens] = True
        weights = {
            name: torch.from_numpy(
                np.concatenate(
                    [getattr(example, name)[tokens] for example, tokens in zip(examples, trained, strict=True)]
                )
            )
            for name in ("likelihood", "unlikelihood", "anchor")
        }
        targets = [
            example.input_ids[example.response_start + tokens]
            for example, tokens in zip(examples, trained, strict=True)
        ]
        return cls(
            inputs=inputs | {"use_cache": False},
            keep=keep.view(inputs["input_ids"].shape),
            targets=torch.from_numpy(np.concatenate(targets)).long(),
            example=torch.repeat_interleave(torch.arange(len(examples)), torch.tensor([len(t) for t in trained])),
            tokens_per_example=torch.tensor([example.n for example in examples]),
            **weights,
        )

    def to(self, device: torch.device) -> Self:
        return replace(self, **moved(vars(self), device))


def _trained(example: Example) -> np.ndarray:
    """Which of an example's n tokens have a weight; the first, where none has."""
    tokens = example.weighted.nonzero()[0]
    return tokens if len(tokens) else np.zeros(1, np.int64)


def packed_inputs(rows: Sequence[Sequence[int]], shared: int) -> tuple[dict[str, Any], list[int]]:
    """Arguments of the model's forward for rows that share their first tokens, and where each row's position 0 is (for
    positions from `shared` on): row r's position t stands at starts[r] + t."""
    texts, starts = PackedTexts(), []
    beginning = texts.append(rows[0][:shared], ()) if shared else ()
    for row in rows:
        starts.append(len(texts.ids) - shared)
        texts.append(row[shared:], beginning)
    return texts.inputs(), starts


def _padded_inputs(rows: Sequence[Sequence[int]], pad_id: int) -> dict[str, Tensor]:
    """Rows padded on the right, so that no position moves."""
    longest = max(map(len, rows))
    lengths = torch.tensor([len(row) for row in rows])
    return {
        "input_ids": torch.tensor([[*row, *[pad_id] * (longest - len(row))] for row in rows]),
        "attention_mask": (torch.arange(longest) < lengths[:, None]).long(),
    }
