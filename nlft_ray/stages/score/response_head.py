"""The LM head over response tokens, a piece at a time: nothing of the size tokens × vocabulary exists."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from nlft_ray.models.abilities import hidden_and_logits, only_the_head_follows
from nlft_ray.models.attention import body
from nlft_ray.models.packing import to_device

LOGITS_AT_A_TIME = 256
"""Response tokens whose logits exist at a time: with fewer, the product with the head's weights is slow."""
FLOAT32_BYTES = {"cpu": 2**21, "gpu": 2**28}
"""Bytes of those logits that are worked on at a time in float32: on a CPU they should fit its cache."""


@dataclass(frozen=True, eq=False)
class ResponseStates:
    """The results of a forward pass at the N positions that predict response tokens."""

    hidden: Tensor
    """(N, d) hidden states, which the LM head reads."""
    logits: Tensor | None
    """(N, V) where the model's own logits are more than its head of these states; else None."""
    targets: Tensor
    """(N,) int64, the response tokens."""

    def split(self, counts: list[int]) -> list["ResponseStates"]:
        """The parts of several responses, of so many tokens each."""
        logits = [None] * len(counts) if self.logits is None else self.logits.split(counts)
        parts = zip(self.hidden.split(counts), logits, self.targets.split(counts), strict=True)
        return [ResponseStates(*part) for part in parts]


class ResponseHead:
    """Runs a model up to its LM head, and the head where response tokens are predicted."""

    def __init__(self, model: PreTrainedModel):
        self._model = model
        self._head: torch.nn.Module = model.get_output_embeddings()
        self._only_head_follows = only_the_head_follows(model)

    def states(self, inputs: dict[str, Any], positions: Tensor, targets: Tensor) -> ResponseStates:
        """A forward pass. The host does not wait for it.

        Args:
            inputs: arguments of the model's forward over (B, T) tokens.
            positions: (N,) int64 on the host, those that predict response tokens, row after row of B · T.
            targets: (N,) int64 on the host, the response tokens.
        """
        logits = None
        if self._only_head_follows:
            hidden = body(self._model)(**inputs).last_hidden_state
            hidden = hidden.flatten(0, 1).index_select(0, to_device(positions, hidden.device))
        else:
            hidden, logits = (states[0] for states in hidden_and_logits(self._model, inputs, positions))
        return ResponseStates(hidden, logits, to_device(targets, hidden.device))

    def token_facts(self, states: ResponseStates, *, with_top: bool) -> dict[str, Tensor]:
        """log p of the n target tokens; with `with_top` also the most probable token at each place.

        Returns:
            logp (n,) float32; top (n,) int32 and top_logp (n,) float32.
        """
        pieces: list[dict[str, Tensor]] = []
        for start in range(0, len(states.targets), LOGITS_AT_A_TIME):
            part = slice(start, start + LOGITS_AT_A_TIME)
            logits = self._head(states.hidden[part]) if states.logits is None else states.logits[part]
            targets = states.targets[part].to(logits.device)
            rows = max(1, FLOAT32_BYTES["cpu" if logits.device.type == "cpu" else "gpu"] // (4 * logits.shape[1]))
            for piece in zip(logits.split(rows), targets.split(rows), strict=True):
                pieces.append(_facts(*piece, with_top))
        return {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}


def _facts(logits: Tensor, targets: Tensor, with_top: bool) -> dict[str, Tensor]:
    scores = logits.float()
    facts = {"logp": -cross_entropy(scores, targets, reduction="none")}
    if with_top:
        top = scores.max(dim=-1)
        chosen = scores.gather(1, targets[:, None])[:, 0]
        facts["top"] = top.indices.to(torch.int32)
        facts["top_logp"] = (facts["logp"] + (top.values - chosen)).clamp_max(0)
    return facts
