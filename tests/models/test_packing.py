"""Attention by segments: in blocks, under masks of few queries and in one kernel it is plain softmax."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.llama import modeling_llama

from nlft_ray.models import attention
from nlft_ray.models.attention import _in_blocks
from nlft_ray.models.packing import PackedTexts, Segments
from tests.models.test_abilities import GATED, random_model

ATTEND: Any = attention._attend


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


KEY_HEADS, HEADS, DIM = 2, 4, 8


class _Layer(torch.nn.Module):
    """What an attention function asks of the layer that calls it: this is Llama's, by its module's name."""

    num_key_value_groups = HEADS // KEY_HEADS
    is_causal = True


_Layer.__module__ = modeling_llama.__name__


def texts_of(stored: int, trees: list[tuple[int, list[int]]]) -> PackedTexts:
    """Trees of a trunk, which may be empty, and branches, of so many tokens each."""
    texts = PackedTexts(stored=stored)
    for trunk, branches in trees:
        continued = texts.append([0] * trunk, texts.beginning) if trunk else texts.beginning
        for branch in branches:
            texts.append([0] * branch, continued)
    return texts


def by_definition(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, segments: Segments, window: int | None
) -> torch.Tensor:
    """(1, N, heads, dim): a token attends to what its segment reads, not to what comes later, and in a window not to
    what comes earlier."""
    allowed = torch.zeros(query.shape[2], key.shape[2], dtype=torch.bool)
    for segment in segments:
        places = torch.cat([torch.arange(part.start, part.stop) for part in segment.reads])
        for back, row in enumerate(range(segment.own.stop - 1, segment.own.start - 1, -1)):
            seen = places[: len(places) - back]
            allowed[row, seen if window is None else seen[-window:]] = True
    grouped = [states.repeat_interleave(HEADS // KEY_HEADS, 1) for states in (key, value)]
    scores = (query @ grouped[0].transpose(2, 3) * 0.5).masked_fill(~allowed, float("-inf"))
    return (scores.softmax(-1) @ grouped[1]).transpose(1, 2)


def varlen_reference(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seq_q: torch.Tensor,
    cu_seq_k: torch.Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float,
    window_size: tuple[int, int],
    enable_gqa: bool,
) -> torch.Tensor:
    """torch's `varlen_attn` as its documentation and flash attention define it, one sequence after the other: aligned
    at the last query and key, `window_size` tokens to the left and right beside the token's own."""
    left, right = window_size
    assert (right, enable_gqa) == (0, True)
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
    assert max_q == cu_seq_q.diff().max()
    assert max_k == cu_seq_k.diff().max()
    outputs = []
    for a, b, c, d in zip(cu_seq_q, cu_seq_q[1:], cu_seq_k, cu_seq_k[1:], strict=False):
        q, k, v = (states.transpose(0, 1) for states in (query[a:b], key[c:d], value[c:d]))
        ahead = torch.arange(d - c) - torch.arange(d - c - (b - a), d - c)[:, None]
        allowed = (ahead <= 0) & (ahead >= -left) if left >= 0 else ahead <= 0
        scores = q @ k.repeat_interleave(len(q) // len(k), 0).transpose(1, 2) * scale
        weights = scores.masked_fill(~allowed, float("-inf")).softmax(-1)
        outputs.append((weights @ v.repeat_interleave(len(q) // len(v), 0)).transpose(0, 1))
    return torch.cat(outputs)


def flash_by_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "_takes_flash", lambda *_: True)
    monkeypatch.setattr(attention, "_varlen_attn", lambda: varlen_reference)


@settings(max_examples=25, deadline=None)
@given(
    way=st.sampled_from(["sdpa", "eager", "flash"]),
    stored=st.sampled_from([0, 0, 40]),
    trees=st.lists(
        st.tuples(st.integers(0, 60), st.lists(st.integers(1, 400), min_size=1, max_size=3)), min_size=1, max_size=2
    ),
    window=st.sampled_from([None, 1, 7, 300]),
    seed=st.integers(0, 99),
)
def test_segments_are_plain_attention_and_so_are_their_gradients(
    way: str, stored: int, trees: list[tuple[int, list[int]]], window: int | None, seed: int
) -> None:
    texts = texts_of(stored, trees)
    segments: Segments = texts.inputs()["segments"]
    generator = torch.Generator().manual_seed(seed)
    tokens = len(texts.ids)
    states = [
        torch.randn(1, heads, count, DIM, generator=generator, requires_grad=True)
        for heads, count in [(HEADS, tokens), (KEY_HEADS, stored + tokens), (KEY_HEADS, stored + tokens)]
    ]
    plain: Callable[..., Any] = attention._eager if way == "eager" else attention._sdpa
    with pytest.MonkeyPatch.context() as monkeypatch:
        if way == "flash":
            flash_by_reference(monkeypatch)
        found, _ = ATTEND(
            plain, _Layer().eval(), *states, None, segments, scaling=0.5, sliding_window=window, dropout=0.0
        )
    wanted = by_definition(states[0], states[1], states[2], segments, window)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    upstream = torch.randn(found.shape, generator=generator)
    gradients = [torch.autograd.grad(output, states, upstream) for output in (found, wanted)]
    for mine, plainly in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, plainly, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("window", [None, 8])
def test_models_read_packed_texts_by_the_flash_kernel(window: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole models hand it what it wants, stored states among it."""
    model = random_model("mistral", GATED | {"sliding_window": window})
    texts = [[number % 7 + 1 for number in range(20)], [5, 4, 3], [2, 1, 6, 6]]
    packed = PackedTexts()
    trunk = packed.append(texts[0], packed.beginning)
    for rest in texts[1:]:
        packed.append(rest, trunk)
    with torch.inference_mode():
        alone = [model(torch.tensor([texts[0] + rest]), use_cache=False).logits[0, 20:] for rest in texts[1:]]
        assert attention.attend_by_segments(model)
        flash_by_reference(monkeypatch)
        together = model(**packed.inputs(), use_cache=False).logits[0, 20:]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("window", [None, 50])
@pytest.mark.parametrize("stored", [0, 40])
def test_the_flash_kernel_is_plain_attention(stored: int, window: int | None) -> None:
    segments: Segments = texts_of(stored, [(30, [200, 1, 333]), (0, [64])]).inputs()["segments"]
    tokens = max(segment.own.stop for segment in segments)
    torch.manual_seed(0)
    states = [
        torch.randn(1, heads, count, 64, device="cuda", requires_grad=True)
        for heads, count in [(HEADS, tokens), (KEY_HEADS, stored + tokens), (KEY_HEADS, stored + tokens)]
    ]
    half = [part.detach().bfloat16().requires_grad_() for part in states]
    assert attention._takes_flash(half[0], half[2], {})
    options = {"scaling": 0.125, "sliding_window": window, "dropout": 0.0}
    exact, _ = ATTEND(attention._sdpa, _Layer().eval(), *states, None, segments, **options)
    found, _ = ATTEND(attention._sdpa, _Layer().eval(), *half, None, segments, **options)
    torch.testing.assert_close(found.float(), exact, atol=0.03, rtol=0.03)
    upstream = torch.randn_like(exact)
    for mine, plainly in zip(
        torch.autograd.grad(found, half, upstream.bfloat16()), torch.autograd.grad(exact, states, upstream), strict=True
    ):
        torch.testing.assert_close(mine.float(), plainly, atol=0.1, rtol=0.05)
