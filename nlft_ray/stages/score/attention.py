"""Attention of trees: every segment reads its own context and nothing else."""

from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from nlft_ray.stages.score.prefix import keeps_every_token
from nlft_ray.stages.score.trees import Forest, Segment, Tree

_NAME = "nlft_ray_tree"  # among transformers' attention implementations
_BLOCK = 64  # queries at a time on a CPU, so that their scores stay in its cache


def takes_trees(model: PreTrainedModel) -> bool:
    """Make the model read trees, if it tells the same of a branch as of the branch alone.

    That is tried on a small tree, for there are many ways of attending: with position biases, windows, states.
    """
    if model.config._attn_implementation != "sdpa" or not model._supports_attention_backend:
        return False
    trunk, rests = [1, 2, 3], [[1, 3], [2, 0, 1]]
    forest = Forest(stored=0)
    forest.plant(Tree(trunk, [(rest[:-1], rest[-1:]) for rest in rests]))
    with torch.inference_mode():
        alone = [model(torch.tensor([trunk + rest], device=model.device), use_cache=True) for rest in rests]
        model.set_attn_implementation(_NAME)
        inputs = {
            name: value.to(model.device) if isinstance(value, torch.Tensor) else value
            for name, value in forest.inputs().items()
        }
        found = model(**inputs).logits[0, forest.keep].float()
    wanted = torch.stack([output.logits[0, -2] for output in alone]).float()
    tolerance = torch.finfo(model.dtype).eps ** 0.5 * wanted.abs().max()
    if keeps_every_token(alone[0].past_key_values) and bool((found - wanted).abs().max() <= tolerance):
        return True
    model.set_attn_implementation("sdpa")
    return False


def _tree_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    tree_segments: list[Segment] | None = None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """(1, heads, N, dim) queries, (1, key heads, stored + N, dim) keys and values → (1, N, heads, dim)."""
    if tree_segments is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    attend = _in_blocks if query.device.type == "cpu" and query.dtype != torch.float32 else _fused
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    found = []
    for segment in tree_segments:
        keys, values = ([states[0, :, part] for part in segment.reads] for states in (key, value))
        found.append(attend(query[0, :, segment.own], keys, values, scale))
    return torch.cat(found, dim=1).transpose(0, 1)[None], None


AttentionInterface.register(_NAME, _tree_attention)
AttentionMaskInterface.register(_NAME, sdpa_mask)


def _fused(query: Tensor, keys: list[Tensor], values: list[Tensor], scale: float) -> Tensor:
    """(heads, n, dim) queries of the last n of T tokens, T keys and values (key heads, T, dim) in parts →
    (heads, n, dim)."""
    key, value = torch.cat(keys, dim=1), torch.cat(values, dim=1)
    n, tokens = query.shape[1], key.shape[1]
    mask = torch.ones(n, tokens, dtype=torch.bool, device=query.device).tril(tokens - n) if n < tokens else None
    return torch.nn.functional.scaled_dot_product_attention(
        query[None], key[None], value[None], mask, scale=scale, is_causal=mask is None, enable_gqa=True
    )[0]


def _in_blocks(query: Tensor, keys: list[Tensor], values: list[Tensor], scale: float) -> Tensor:
    """As `_fused`. On a CPU in bf16 twice as fast as torch's fused kernel, whose products of matrices are too small.

    Blocks are filled up with zeros to multiples of one size: oneDNN compiles a kernel for every shape that it meets.
    """
    (heads, n, dim), key_heads = query.shape, keys[0].shape[0]
    before = sum(part.shape[1] for part in keys) - n
    nothing = query.new_zeros(key_heads, -(before + n) % _BLOCK, dim)
    key, value = torch.cat([*keys, nothing], dim=1).transpose(1, 2), torch.cat([*values, nothing], dim=1)
    grouped = torch.nn.functional.pad(query * scale, (0, 0, 0, -n % _BLOCK)).unflatten(0, (key_heads, -1))
    rows = torch.arange(_BLOCK)[:, None]
    found = []
    for start in range(0, n, _BLOCK):
        seen = min(-(-(before + start + _BLOCK) // _BLOCK) * _BLOCK, key.shape[2])
        scores = grouped[:, :, start : start + _BLOCK].flatten(1, 2) @ key[:, :, :seen]
        first = max(0, seen - 2 * _BLOCK)  # of the columns that may be later than a row
        later = torch.arange(first, seen) > before + start + rows
        scores.unflatten(1, (-1, _BLOCK))[..., first:].masked_fill_(later, float("-inf"))
        weights = scores.softmax(-1, dtype=torch.float32).to(value.dtype)
        found.append((weights @ value[:, :seen]).view(heads, _BLOCK, dim))
    return torch.cat(found, dim=1)[:, :n]
