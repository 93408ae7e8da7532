"""Many texts in one sequence, without padding, each token attending to its own text alone.

What texts begin with in common stands there once, a segment that others continue: causal attention makes its states the
same whatever follows, and the gradients of all that continues it add up in it.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

_BY_SEGMENTS = {"sdpa": "nlft_ray_segments", "eager": "nlft_ray_segments_eager"}
"""The names under which attention by segments stands in for transformers' implementations."""
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
    """The parts that they read, T states in all: the n own ones are the last."""
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
        """The states that a text reads which continues the stored tokens alone."""
        return (slice(0, self.stored),) if self.stored else ()

    def append(self, tokens: Sequence[int], continued: Reads) -> Reads:
        """Add a segment that continues what `continued` reads; returns what a continuation of it reads."""
        own = slice(len(self.ids), len(self.ids) + len(tokens))
        seen = sum(part.stop - part.start for part in continued)
        self.ids.extend(tokens)
        self.positions.extend(range(seen, seen + len(tokens)))
        reads = (*continued, slice(own.start + self.stored, own.stop + self.stored))
        mask = _causal(len(tokens), seen + len(tokens)) if seen else None
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


def attend_by_segments(model: PreTrainedModel) -> Callable[[], None] | None:
    """Make a model read packed texts: by segments where its attention can be exchanged, else by a mask of all tokens.

    It may yet mix texts in other places: `abilities` tries what it gives.

    Returns:
        What undoes it; None, and nothing done, where layers keep other states than keys and values of tokens (a
        recurrence), or look through windows that only their masks know.
    """
    configured = model.config._attn_implementation
    if configured not in _BY_SEGMENTS or not keeps_keys_and_values(model.config):
        return None
    windows = any(isinstance(layer, DynamicSlidingWindowLayer) for layer in DynamicCache(config=model.config).layers)
    if model._supports_attention_backend:
        if windows and not model._supports_flash_attn:  # which takes no mask, so that layers name it their windows
            return None
        model.set_attn_implementation(_BY_SEGMENTS[configured])
        return partial(model.set_attn_implementation, configured)
    if windows or configured != "sdpa" or getattr(model.config, "alibi", False):  # makes biases from a mask of its own
        return None
    hooks = [module.register_forward_pre_hook(_mask_segments, with_kwargs=True) for module in (model, body(model))]
    return partial(_remove, hooks)


def body(model: PreTrainedModel) -> Any:
    """The model without its LM head."""
    return model.model if model.base_model is model else model.base_model  # Llama 4 names another prefix than it has


def keeps_keys_and_values(config: PreTrainedConfig) -> bool:
    """Whether all states of a model are keys and values of tokens, of some perhaps through a window: no recurrence."""
    kinds = {type(layer) for layer in DynamicCache(config=config).layers}
    return bool(kinds) and kinds <= {DynamicLayer, DynamicSlidingWindowLayer}


def _attend(
    plain: Callable[..., tuple[Tensor, Any]],
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    segments: Sequence[Segment] | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Any]:
    """(1, heads, N, dim) queries, (1, key heads, stored + N, dim) keys and values → (1, N, heads, dim)."""
    if segments is None:
        return plain(module, query, key, value, attention_mask, **kwargs)
    # Blocks keep their scores for a backward pass, which the fused kernel does without.
    half_on_cpu = query.device.type == "cpu" and query.dtype != torch.float32
    blocks = plain is _sdpa and half_on_cpu and not torch.is_grad_enabled()
    window = kwargs.get("sliding_window")
    outputs = []
    for segment in segments:
        own = query[:, :, segment.own]
        keys, values = ([states[:, :, part] for part in segment.reads] for states in (key, value))
        n, seen = own.shape[2], sum(part.shape[2] for part in keys)
        if window is not None and seen > window:
            near = min(seen, n + window - 1)
            parts = (_joined(states)[:, :, -near:] for states in (keys, values))
            output, _ = plain(module, own, *parts, _causal(n, near, window, own.device), **kwargs)
        elif blocks:
            output = _in_blocks(own, keys, values, kwargs.get("scaling") or query.shape[-1] ** -0.5)
        else:
            output, _ = plain(module, own, _joined(keys), _joined(values), segment.mask, **kwargs)
        outputs.append(output)
    return torch.cat(outputs, dim=1), None


_sdpa = AttentionInterface()["sdpa"]


def _eager(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, Any]:
    """The attention that the model's own file defines, with its caps and sinks, for a boolean mask or none."""
    if mask is None:
        mask = _causal(query.shape[2], key.shape[2], None, query.device)
    if mask.dtype == torch.bool:
        mask = _added(mask, query.dtype)
    output: tuple[Tensor, Any] = sys.modules[type(module).__module__].eager_attention_forward(
        module, query, key, value, mask, **kwargs
    )
    return output


for _name, _plain in (("sdpa", _sdpa), ("eager", _eager)):
    AttentionInterface.register(_BY_SEGMENTS[_name], partial(_attend, _plain))
    AttentionMaskInterface.register(_BY_SEGMENTS[_name], AttentionMaskInterface()[_name])


def _mask_segments(model: Any, arguments: Any, named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Before a pass over packed texts: in place of their segments, one mask (1, 1, N, stored + N)."""
    named = dict(named)
    segments: Sequence[Segment] = named.pop("segments", ())
    if segments:
        ids = named["input_ids"]
        total = max(part.stop for segment in segments for part in segment.reads)
        allowed = torch.zeros(1, 1, ids.shape[1], total, dtype=torch.bool, device=ids.device)
        for segment in segments:
            rows = allowed[:, :, segment.own]
            for part in segment.reads[:-1]:
                rows[..., part] = True
            rows[..., segment.reads[-1]] = _causal(rows.shape[2], rows.shape[2], None, ids.device)
        named["attention_mask"] = _added(allowed, model.dtype)
    return arguments, named


def _remove(hooks: Sequence[Any]) -> None:
    for hook in hooks:
        hook.remove()


def _causal(n: int, seen: int, window: int | None = None, device: torch.device | None = None) -> Tensor:
    """(1, 1, n, seen) bool: what each of the last n of `seen` tokens sees, itself among the last `window` ones."""
    mask = torch.ones(1, 1, n, seen, dtype=torch.bool, device=device).tril(seen - n)
    return mask if window is None else mask.triu(seen - n - window + 1)


def _added(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """The scores to add in place of a boolean mask: 0, or minus infinity."""
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, torch.finfo(dtype).min)


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
