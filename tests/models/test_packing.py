"""Attention by segments: the blocks of a CPU and plain softmax are one."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nlft_ray.models.packing import _in_blocks


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 500),
    before=st.lists(st.integers(1, 150), max_size=2),
    key_heads=st.sampled_from([1, 2]),
    group=st.sampled_from([1, 3]),
    seed=st.integers(0, 99),
)
def test_blocks_are_plain_attention(n: int, before: list[int], key_heads: int, group: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    sizes = [*before, n]
    tokens, dim = sum(sizes), 8
    query = torch.randn(key_heads * group, n, dim, generator=generator)
    key, value = torch.randn(2, key_heads, tokens, dim, generator=generator)
    later = torch.arange(tokens) > torch.arange(tokens - n, tokens)[:, None]
    scores = (query @ key.repeat_interleave(group, 0).transpose(1, 2)).double() * 0.5
    wanted = scores.masked_fill(later, float("-inf")).softmax(-1) @ value.repeat_interleave(group, 0).double()
    found = _in_blocks(query[None], key[None].split(sizes, 2), value[None].split(sizes, 2), 0.5)
    torch.testing.assert_close(found[0].transpose(0, 1).double(), wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_near(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 1, 4, 150, 16)
    exact = _in_blocks(query, [key], [value], 0.25)
    half = _in_blocks(query.to(dtype), [key.to(dtype)], [value.to(dtype)], 0.25)
    assert half.dtype == dtype
    torch.testing.assert_close(half.float(), exact, atol=0.03, rtol=0.03)
