"""Rows one after another in a single sequence, without padding, each attending to itself alone.

What all rows' prompts begin with, such as a common instruction, stands there once: causal attention makes its states
the same whatever follows, and the gradients of all the rows that continue it add up in it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.cache_utils import DynamicCache, DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

_ATTENTION = "nlft_ray_packed"  # its name among transformers' attention implementations


@dataclass(frozen=True, eq=False)
class Segment:
    """Consecutive tokens, which attend to those before them here and to the shared beginning."""

    own: slice
    shared: int
    """Tokens at the start of the sequence that this segment continues."""
    mask: Tensor | None
    """(1, 1, own, shared + own) bool, True where attention goes; None where nothing is shared: plainly causal."""

    def to(self, device: torch.device) -> "Segment":
        return replace(self, mask=self.mask.to(device)) if self.mask is not None else self


def packed_inputs(rows: Sequence[Sequence[int]], shared: int) -> tuple[dict[str, Any], list[int]]:
    """Arguments of the model's forward for rows that share their first tokens, and where each row's position 0 is (for
    positions from `shared` on): row r's position t stands at starts[r] + t."""
    ids, positions, starts = list(rows[0][:shared]), list(range(shared)), []
    segments = [Segment(slice(0, shared), 0, None)] if shared else []
    for row in rows:
        own = slice(len(ids), len(ids) + len(row) - shared)
        starts.append(len(ids) - shared)
        ids.extend(row[shared:])
        positions.extend(range(shared, len(row)))
        segments.append(Segment(own, shared, _mask(len(row) - shared, shared) if shared else None))
    inputs = {
        "input_ids": torch.tensor([ids]),
        "position_ids": torch.tensor([positions]),
        "attention_mask": torch.empty(1, 1, 0, 0),  # given, so that none is made; not read
        "packed_segments": segments,
    }
    return inputs, starts


def _mask(own: int, shared: int) -> Tensor:
    return torch.ones(1, 1, own, shared + own, dtype=torch.bool).tril(shared)


def _attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    packed_segments: list[Segment] | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """(1, heads, N, dim) queries, keys and values → (1, N, heads, dim)."""
    if packed_segments is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    found = []
    for segment in packed_segments:
        keys, values = (_read_by(segment, states) for states in (key, value))
        own, _ = sdpa_attention_forward(module, query[:, :, segment.own], keys, values, segment.mask, **kwargs)
        found.append(own)
    return torch.cat(found, dim=1), None


def _read_by(segment: Segment, states: Tensor) -> Tensor:
    own = states[:, :, segment.own]
    return torch.cat([states[:, :, : segment.shared], own], dim=2) if segment.shared else own


AttentionInterface.register(_ATTENTION, _attention)
AttentionMaskInterface.register(_ATTENTION, sdpa_mask)


def attend_by_rows(model: PreTrainedModel) -> bool:
    """Make the model's attention read packed rows; False where it has another one, or keeps states that are not keys
    and values of every token (a sliding window, a recurrence)."""
    layers = DynamicCache(config=model.config).layers
    if model.config._attn_implementation != "sdpa" or not model._supports_attention_backend:
        return False
    if not layers or any(type(layer) is not DynamicLayer for layer in layers):
        return False
    model.set_attn_implementation(_ATTENTION)
    return True
