"""Many texts in one sequence, without padding, each token attending to its own text alone.

What texts begin with in common stands there once, a segment that others continue: causal attention makes its states the
same whatever follows, and the gradients of all that continues it add up in it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.cache_utils import DynamicCache, DynamicLayer

_ATTENTION = "nlft_ray_segments"  # its name among transformers' attention implementations
_sdpa_attention = AttentionInterface()["sdpa"]
_BLOCK = 192  # queries at a time on a CPU, so that their scores stay in its cache and few of them are masked
_MULTIPLE = 64  # sizes are rounded up to multiples of this: oneDNN compiles a kernel for every shape that it meets

Reads = tuple[slice, ...]
"""Parts of a pass's states that a token reads, in order of position. Stored states come before those of the pass."""


@dataclass(frozen=True, eq=False)
class Segment:
    """n consecutive tokens: each attends to the tokens before it here, and to all that the segment continues."""

    own: slice
    """Where they stand among the N tokens of the pass."""
    reads: Reads
    """What they read, T states in all: the n own ones are the last."""
    mask: Tensor | None
    """(1, 1, n, T) bool, True where attention goes; None where the segment continues nothing: plainly causal."""

    def to(self, device: torch.device) -> "Segment":
        return self if self.mask is None else replace(self, mask=self.mask.to(device))


@dataclass
class PackedTexts:
    """N tokens, segment after segment; `stored` tokens that all of them continue have run before."""

    stored: int = 0
    ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    segments: list[Segment] = field(default_factory=list)

    @property
    def beginning(self) -> Reads:
        """What a text reads that continues the stored tokens alone."""
        return (slice(0, self.stored),) if self.stored else ()

    def append(self, tokens: Sequence[int], continued: Reads) -> Reads:
        """Add a segment that continues what `continued` reads; returns what a continuation of it reads."""
        own = slice(len(self.ids), len(self.ids) + len(tokens))
        seen = sum(part.stop - part.start for part in continued)
        self.ids.extend(tokens)
        self.positions.extend(range(seen, seen + len(tokens)))
        reads = (*continued, slice(own.start + self.stored, own.stop + self.stored))
        mask = torch.ones(1, 1, len(tokens), seen + len(tokens), dtype=torch.bool).tril(seen) if seen else None
        self.segments.append(Segment(own, reads, mask))
        return reads

    def inputs(self) -> dict[str, Any]:
        """Arguments of the model's forward over (1, N) tokens."""
        return {
            "input_ids": torch.tensor([self.ids]),
            "position_ids": torch.tensor([self.positions]),
            "attention_mask": torch.empty(1, 1, 0, 0),  # given, so that none is made; not read
            "segments": self.segments,
        }


def moved(inputs: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """A model's arguments, segments among them, on a device."""

    def move(value: Any) -> Any:
        if isinstance(value, dict):
            return moved(value, device)
        if isinstance(value, list):
            return [move(part) for part in value]
        return value.to(device) if isinstance(value, Tensor | Segment) else value

    return {name: move(value) for name, value in inputs.items()}


def attend_by_segments(model: PreTrainedModel) -> bool:
    """Make the model's attention read packed texts.

    False, and nothing done, where it has another attention than sdpa, or keeps states that are not keys and values of
    every token (a sliding window, a recurrence). A model may yet mix texts elsewhere: `abilities` tries what it gives.
    """
    if model.config._attn_implementation != "sdpa" or not model._supports_attention_backend:
        return False
    if not keeps_every_token(DynamicCache(config=model.config)):
        return False
    model.set_attn_implementation(_ATTENTION)
    return True


def keeps_every_token(cache: object) -> bool:
    """Whether it holds keys and values of every token in every layer: no sliding window, no recurrent state."""
    layers = cache.layers if isinstance(cache, DynamicCache) else []
    return bool(layers) and all(type(layer) is DynamicLayer for layer in layers)


def _attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    segments: Sequence[Segment] | None = None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """(1, heads, N, dim) queries, (1, key heads, stored + N, dim) keys and values → (1, N, heads, dim)."""
    if segments is None:
        return _sdpa_attention(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    # Blocks keep their scores for a backward pass, which the fused kernel does without.
    blocks = query.device.type == "cpu" and query.dtype != torch.float32 and not torch.is_grad_enabled()
    outputs = []
    for segment in segments:
        own = query[:, :, segment.own]
        keys, values = ([states[:, :, part] for part in segment.reads] for states in (key, value))
        if blocks:
            output = _in_blocks(own, keys, values, query.shape[-1] ** -0.5 if scaling is None else scaling)
        else:
            arguments = (own, _joined(keys), _joined(values), segment.mask)
            output, _ = _sdpa_attention(module, *arguments, scaling=scaling, **kwargs)
        outputs.append(output)
    return torch.cat(outputs, dim=1), None


AttentionInterface.register(_ATTENTION, _attention)
AttentionMaskInterface.register(_ATTENTION, AttentionMaskInterface()["sdpa"])


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(tuple(parts), dim=2)


def _in_blocks(query: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], scale: float) -> Tensor:
    """(1, heads, n, dim) queries of the last n of T tokens; keys and values (1, key heads, T, dim) in parts →
    (1, n, heads, dim).

    On a CPU in bf16 twice as fast as torch's fused kernel, whose products of matrices are too small.
    """
    (_, heads, n, dim), key_heads = query.shape, keys[0].shape[1]
    before = sum(part.shape[2] for part in keys) - n
    padding = query.new_zeros(1, key_heads, -(before + n) % _MULTIPLE, dim)
    key, value = (torch.cat([*parts, padding], dim=2)[0] for parts in (keys, values))
    key = key.transpose(1, 2)
    grouped = torch.nn.functional.pad(query[0] * scale, (0, 0, 0, -n % _MULTIPLE)).unflatten(0, (key_heads, -1))
    outputs: list[Tensor] = []
    for block in grouped.split(_BLOCK, dim=2):
        rows, start = block.shape[2], before + _BLOCK * len(outputs)
        seen = min(-(-(start + rows) // _MULTIPLE) * _MULTIPLE, key.shape[2])
        scores = block.flatten(1, 2) @ key[:, :, :seen]
        later = torch.arange(start, seen) > torch.arange(start, start + rows)[:, None]
        scores.unflatten(1, (-1, rows))[..., start:].masked_fill_(later, float("-inf"))
        weights = scores.softmax(-1)  # which computes in float32 inside
        outputs.append((weights @ value[:, :seen]).view(heads, rows, dim))
    return torch.cat(outputs, dim=1)[:, :n].transpose(0, 1)[None]
