"""Dropout that follows from the seed, the step and the text, not from where in which batch a row stands.

Each number that is dropped or kept is drawn by hashing: of the tokens up to and with its own, its place in the hidden
state, its layer, the step and the seed. So the same row is given the same masks alone, padded or packed; and a
beginning that rows share, which may run once for all of them, has the same masks in each.
"""

from typing import Any

import torch
from torch import Tensor, nn

_GOLDEN = 0x9E3779B97F4A7C15 - 2**64  # the odd numbers of splitmix64 and of murmur3's finish, as signed ones
_SPLITMIX = (0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64)
_MURMUR = (0x85EBCA6B - 2**32, 0xC2B2AE35 - 2**32)


class TokenKeys:
    """What the masks of a pass depend on, for all its layers: a key for each token."""

    def __init__(self) -> None:
        self._keys: Tensor | None = None

    def set(self, inputs: dict[str, Any], seed: int, step: int) -> None:
        """Before a pass: the model's inputs, as `MicroBatch` has them.

        They hold until the next, since recomputation in the backward pass must find the same masks.
        """
        draw = torch.tensor([seed, step], device=inputs["input_ids"].device).mul_(_GOLDEN).cumsum(0)
        self._keys = _mixed(_of_beginnings(inputs) + _mixed(draw).sum())

    def of_layer(self, layer: int) -> Tensor:
        """(R, T, 1) int32."""
        assert self._keys is not None, "keys are set before a pass"
        keys = _mixed(self._keys + layer * 2 + 1)
        return (keys ^ _shifted(keys, 32)).to(torch.int32)[..., None]


class KeyedDropout(nn.Module):
    """Dropout on (R, T, d) hidden states."""

    def __init__(self, probability: float, layer: int, keys: TokenKeys):
        super().__init__()
        self._probability, self._layer, self._keys = probability, layer, keys

    def forward(self, hidden: Tensor) -> Tensor:
        if not self.training:
            return hidden
        places = _mixed(torch.arange(1, hidden.shape[-1] + 1, device=hidden.device) * _GOLDEN).to(torch.int32)
        drawn = _mixed_32(self._keys.of_layer(self._layer) ^ places) & 0x7FFFFFFF
        kept = drawn >= int(self._probability * 2**31)
        return hidden * (kept.to(hidden.dtype) / (1 - self._probability))


def use_keyed_dropout(model: nn.Module, probability: float) -> TokenKeys | None:
    """Make a model's adapters drop by keys; its own dropout, which most models have not, is turned off.

    Returns:
        What has to be set before each pass; None where nothing is dropped.
    """
    keys, layers = TokenKeys(), 0
    module: Any
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0
        if probability and hasattr(module, "lora_dropout"):
            for name in module.lora_dropout:
                module.lora_dropout[name] = KeyedDropout(probability, layers, keys)
            layers += 1
    return keys if layers else None


def _of_beginnings(inputs: dict[str, Any]) -> Tensor:
    """(R, T) int64: the same for two tokens where all tokens up to them are the same."""
    ids = inputs["input_ids"]
    positions = inputs["position_ids"] if "position_ids" in inputs else torch.arange(ids.shape[1], device=ids.device)
    terms = _mixed(ids * _GOLDEN + positions)
    if "segments" not in inputs:
        return terms.cumsum(1)
    parts = []
    for segment in inputs["segments"]:
        before = [terms[:, part].sum() for part in segment.reads[:-1]]
        parts.append(terms[:, segment.own].cumsum(1) + sum(before))
    return torch.cat(parts, dim=1)


def _mixed(words: Tensor) -> Tensor:
    """int64: splitmix64, https://prng.di.unimi.it/splitmix64.c"""
    words = (words ^ _shifted(words, 30)) * _SPLITMIX[0]
    words = (words ^ _shifted(words, 27)) * _SPLITMIX[1]
    return words ^ _shifted(words, 31)


def _mixed_32(words: Tensor) -> Tensor:
    """int32, in place: the finish of murmur3, https://github.com/aappleby/smhasher"""
    words.bitwise_xor_((words >> 16) & 0xFFFF).mul_(_MURMUR[0])
    words.bitwise_xor_((words >> 13) & 0x7FFFF).mul_(_MURMUR[1])
    return words.bitwise_xor_((words >> 16) & 0xFFFF)


def _shifted(words: Tensor, by: int) -> Tensor:
    """int64 as if it had no sign: zeros come in from the left."""
    return (words >> by) & (2 ** (64 - by) - 1)
