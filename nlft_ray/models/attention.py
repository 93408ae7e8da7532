"""Attention over packed texts (`models.packing`): segment by segment on a CPU, in one kernel on a GPU.

It stands in for transformers' own implementations under names of its own, so that a model's files stay as they are.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from nlft_ray.models.packing import FlashIndices, Segments

_BY_SEGMENTS = {"sdpa": "nlft_ray_segments", "eager": "nlft_ray_segments_eager"}
"""The names under which attention by segments stands in for transformers' implementations."""
_BLOCK = 192  # queries at a time on a CPU, so that their scores stay in its cache and few of them are masked
_MULTIPLE = 64  # sizes are rounded up to multiples of this: oneDNN compiles a kernel for every shape that it meets
_QUERIES = 256
"""Queries under a mask at a time: what exists of them at once is linear in a text's length, and little is masked."""
_FLASH_HEAD_DIM = 256  # the widest head that the flash kernels of torch read


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


def attends_by_segments(model: PreTrainedModel) -> bool:
    """Whether a model reads packed texts by segments; else by a mask of all tokens, or not at all."""
    return model.config._attn_implementation in _BY_SEGMENTS.values()


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
    segments: Segments | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Any]:
    """(1, heads, N, dim) queries, (1, key heads, stored + N, dim) keys and values → (1, N, heads, dim)."""
    if segments is None:
        return plain(module, query, key, value, attention_mask, **kwargs)
    if plain is _sdpa and _takes_flash(query, value, kwargs):
        return _flash(query, key, value, segments.indices(query.device), kwargs), None
    outputs: list[Tensor] = []
    for segment in segments:
        keys, values = ([states[:, :, part] for part in segment.reads] for states in (key, value))
        outputs += _segment_outputs(plain, module, query[:, :, segment.own], keys, values, kwargs)
    return torch.cat(outputs, dim=1), None


def _segment_outputs(
    plain: Callable[..., tuple[Tensor, Any]],
    module: torch.nn.Module,
    query: Tensor,
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    kwargs: dict[str, Any],
) -> Iterator[Tensor]:
    """(1, heads, n, dim) queries of the last n of T tokens; keys and values (1, key heads, T, dim) in parts →
    (1, …, heads, dim) for some of the queries after the other, n in all.

    Nothing of the size n × T exists: plainly causal attention needs no mask, and under one run few queries at a time.
    """
    n, seen = query.shape[2], sum(part.shape[2] for part in keys)
    window = min(kwargs.get("sliding_window") or seen, seen)
    # Blocks keep their scores for a backward pass, which the fused kernel does without.
    half_on_cpu = query.device.type == "cpu" and query.dtype != torch.float32
    if window == seen and plain is _sdpa and half_on_cpu and not torch.is_grad_enabled():
        yield _in_blocks(query, keys, values, kwargs.get("scaling") or query.shape[-1] ** -0.5)
        return
    if n == seen == window and plain is _sdpa:
        yield plain(module, query, _joined(keys), _joined(values), None, **kwargs)[0]
        return
    latest_first = [_joined(parts).flip(2) for parts in (keys, values)]
    for start in range(0, n, _QUERIES):
        rows = query[:, :, start : start + _QUERIES]
        stop = seen - n + start + rows.shape[2]  # what is later, the last of these queries does not see
        first = max(0, seen - n + start - window + 1)  # what is earlier, the first of them does not see
        near = [states[:, :, seen - stop : seen - first] for states in latest_first]
        yield plain(module, rows, *near, _band(rows, stop - first, window), **kwargs)[0]


def _band(query: Tensor, width: int, window: int) -> Tensor:
    """(1, 1, rows, width) scores to add for the queries (1, heads, rows, dim) of the last of `width` tokens, whose keys
    stand latest first: 0 where a token looks, itself among the last `window` ones.

    How far a key is from a query then only depends on the sum of their places: on a CPU this is a view of rows + width
    numbers, also where a backward pass keeps it.
    """
    rows = query.shape[2]
    distance = torch.arange(1 - rows, width, device=query.device)
    band = _added((distance >= 0) & (distance < window), query.dtype).unfold(0, width, 1)[None, None]
    return band if query.device.type == "cpu" else band.contiguous()


@cache
def _varlen_attn() -> Callable[..., Any] | None:
    """torch's flash attention over texts of various lengths; None where this torch has none, or an earlier form."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    known = signature(varlen_attn).parameters
    return varlen_attn if {"scale", "window_size", "enable_gqa"} <= set(known) else None


def _takes_flash(query: Tensor, value: Tensor, kwargs: dict[str, Any]) -> bool:
    return (
        query.device.type == "cuda"
        and query.dtype in (torch.bfloat16, torch.float16)
        and query.shape[-1] == value.shape[-1] <= _FLASH_HEAD_DIM
        and query.shape[-1] % 8 == 0
        and not kwargs.get("dropout")
        and torch.cuda.get_device_capability(query.device) >= (8, 0)
        and _varlen_attn() is not None
    )


def _flash(query: Tensor, key: Tensor, value: Tensor, indices: FlashIndices, kwargs: dict[str, Any]) -> Tensor:
    """`_attend` in one kernel over all segments, whose causal order aligns each one's last query with its last key."""
    varlen_attn = _varlen_attn()
    assert varlen_attn is not None
    queries, keys, values = (states[0].transpose(0, 1) for states in (query, key, value))  # (tokens, heads, dim)
    if indices.reads is not None:
        keys, values = keys.index_select(0, indices.reads), values.index_select(0, indices.reads)
    window = kwargs.get("sliding_window")
    output: Tensor = varlen_attn(
        queries.contiguous(),
        keys.contiguous(),
        values.contiguous(),
        indices.queries,
        indices.keys,
        indices.most_queries,
        indices.most_keys,
        scale=kwargs.get("scaling"),
        window_size=(-1 if window is None else window - 1, 0),
        enable_gqa=True,
    )
    return output[None]


_sdpa = AttentionInterface()["sdpa"]


def _eager(module: torch.nn.Module, *arguments: Any, **kwargs: Any) -> tuple[Tensor, Any]:
    """The attention that the model's own file defines, with its caps and sinks, by scores to add for a mask."""
    output: tuple[Tensor, Any] = sys.modules[type(module).__module__].eager_attention_forward(
        module, *arguments, **kwargs
    )
    return output


for _name, _plain in (("sdpa", _sdpa), ("eager", _eager)):
    AttentionInterface.register(_BY_SEGMENTS[_name], partial(_attend, _plain))
    AttentionMaskInterface.register(_BY_SEGMENTS[_name], AttentionMaskInterface()[_name])


def _mask_segments(model: Any, arguments: Any, named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Before a pass over packed texts: in place of their segments, one mask (1, 1, N, stored + N)."""
    named = dict(named)
    segments: Segments | None = named.pop("segments", None)
    if segments is not None:
        ids = named["input_ids"]
        total = max(part.stop for segment in segments for part in segment.reads)
        allowed = torch.zeros(1, 1, ids.shape[1], total, dtype=torch.bool, device=ids.device)
        for segment in segments:
            rows = allowed[:, :, segment.own]
            for part in segment.reads[:-1]:
                rows[..., part] = True
            rows[..., segment.reads[-1]] = torch.ones_like(rows[..., segment.reads[-1]]).tril()
        named["attention_mask"] = _added(allowed, model.dtype)
    return arguments, named


def _remove(hooks: Sequence[Any]) -> None:
    for hook in hooks:
        hook.remove()


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
