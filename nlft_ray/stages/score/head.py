"""The LM head, a piece of a response at a time: nothing of the size tokens × vocabulary exists."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

_LOGITS_AT_A_TIME = 256  # response tokens: fewer would make the product with the head's weights slow
_FLOAT32_BYTES = {"cpu": 2**21, "gpu": 2**28}  # of logits at a time, which should fit a CPU's cache


class ResponseLogits:
    """Runs a model; gives, for each response of the pass, its hidden states and its logits piece by piece."""

    def __init__(self, model: PreTrainedModel):
        self._model = model
        self._head: torch.nn.Module = model.get_output_embeddings()
        self._head_is_all = self._only_the_head_follows()

    def __call__(
        self, inputs: dict[str, Any], keep: Tensor, counts: list[int]
    ) -> Iterator[tuple[Tensor, Callable[[slice], Tensor]]]:
        """For each of the counts, hidden states (n, d) that the head reads, and a function to logits (m, V) of some.

        Args:
            inputs: arguments of the model's forward over (B, T) tokens.
            keep: (B, T) bool, the positions that predict response tokens.
            counts: how many of them belong to each response, in order.
        """
        if self._head_is_all:
            hidden = self._model.base_model(**inputs).last_hidden_state
            for states in hidden[keep.to(hidden.device)].split(counts):
                yield states, lambda part, states=states: self._head(states[part])  # type: ignore[misc]
        else:
            hidden, logits = (found[keep.to(found.device)].split(counts) for found in self._whole(inputs))
            for states, scores in zip(hidden, logits, strict=True):
                yield states, lambda part, scores=scores: scores[part]  # type: ignore[misc]

    def _whole(self, inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """What the head reads (B, T, d) and the model's logits (B, T, V)."""
        read: list[Tensor] = []
        hook = self._head.register_forward_pre_hook(lambda _module, inputs: read.append(inputs[0]))
        try:
            logits = self._model(**inputs).logits
        finally:
            hook.remove()
        return read[-1], logits

    @torch.inference_mode()
    def _only_the_head_follows(self) -> bool:
        """Whether logits are the head of the last hidden states; some models cap or scale them. Tried on two tokens."""
        inputs = {"input_ids": torch.tensor([[1, 2]], device=self._model.device)}
        states = self._model.base_model(**inputs).last_hidden_state
        return torch.equal(self._head(states), self._whole(inputs)[1])


def token_facts(logits: Callable[[slice], Tensor], targets: Tensor, with_top: bool) -> dict[str, Tensor]:
    """log p of the n target tokens; with `with_top` also the most probable token at each place.

    Returns:
        logp (n,) float32; top (n,) int32 and top_logp (n,) float32.
    """
    found: list[dict[str, Tensor]] = []
    for start in range(0, len(targets), _LOGITS_AT_A_TIME):
        part = slice(start, start + _LOGITS_AT_A_TIME)
        scores = logits(part)
        wanted = targets[part].to(scores.device)
        rows = max(1, _FLOAT32_BYTES["cpu" if scores.device.type == "cpu" else "gpu"] // (4 * scores.shape[1]))
        found += [_facts(*some, with_top) for some in zip(scores.split(rows), wanted.split(rows), strict=True)]
    return {name: torch.cat([piece[name] for piece in found]) for name in found[0]}


def _facts(logits: Tensor, targets: Tensor, with_top: bool) -> dict[str, Tensor]:
    scores = logits.float()
    facts = {"logp": -cross_entropy(scores, targets, reduction="none")}
    if with_top:
        top = scores.max(dim=-1)
        chosen = scores.gather(1, targets[:, None])[:, 0]
        facts["top"] = top.indices.to(torch.int32)
        facts["top_logp"] = (facts["logp"] + (top.values - chosen)).clamp_max(0)
    return facts
