"""Positions of response tokens, and the positions that predict them. Off by one, a model trains on noise."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


def predicting_positions(response_start: int, n: int) -> range:
    """The n positions whose logits predict the response tokens.

    Token t stands at response_start + t, and the position before it predicts it.

    Raises:
        ValueError: response_start < 1 or n < 1.
    """
    _check(response_start, n)
    return range(response_start - 1, response_start - 1 + n)


@dataclass(frozen=True, eq=False)
class PaddedBatch:
    """B rows padded on the right to T positions; N response tokens in all, row after row."""

    input_ids: Tensor
    """(B, T) int64."""
    keep: Tensor
    """(B, T) bool, the positions that predict response tokens: logits at them are (N, V), in the order of `targets`."""
    targets: Tensor
    """(N,) int64, the response tokens."""


def pad_batch(rows: Sequence[tuple[Sequence[int], int]], pad_id: int) -> PaddedBatch:
    """Pad rows of (input_ids, response_start) on the right, so that no position moves.

    Raises:
        ValueError: a row has response_start < 1 or no response token.
    """
    shape = len(rows), max(len(ids) for ids, _ in rows)
    input_ids = torch.full(shape, pad_id, dtype=torch.int64)
    keep = torch.zeros(shape, dtype=torch.bool)
    for row, (ids, response_start) in enumerate(rows):
        predicting = predicting_positions(response_start, len(ids) - response_start)
        input_ids[row, : len(ids)] = torch.as_tensor(ids)
        keep[row, predicting.start : predicting.stop] = True
    row_indices, positions = keep.nonzero(as_tuple=True)
    return PaddedBatch(input_ids, keep, targets=input_ids[row_indices, positions + 1])


def _check(response_start: int, n: int) -> None:
    if response_start < 1:
        raise ValueError(f"response_start is {response_start}: a prompt token must precede the response")
    if n < 1:
        raise ValueError("the response is empty")
