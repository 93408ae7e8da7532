"""Forward passes over prompts and responses: log-probabilities and hidden-state geometry of the response tokens.

The LM head runs only at positions that predict a response token (`logits_to_keep`), so nothing of the size
prompt × vocabulary exists.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from nlft_ray.core.alignment import pad_batch
from nlft_ray.core.geometry import hidden_geometry
from nlft_ray.core.logprobs import token_logprobs, top_tokens
from nlft_ray.stages.score.passes import pack
from nlft_ray.stages.score.prefix import PrefixStates, common_prefix

Array = NDArray[Any]


@dataclass(frozen=True)
class PassFacts:
    """Facts about the n response tokens of one row under one context."""

    logp: Array  # (n,) float32
    top: Array | None = None  # (n,) int32: the most probable token at each place
    top_logp: Array | None = None  # (n,) float32
    hidden_norm: Array | None = None  # (n,) float32
    hidden_cos: Array | None = None  # (n, K) float32


class Scorer:
    """Runs one model over batches of a token budget."""

    def __init__(self, model: PreTrainedModel, *, pad_id: int, max_tokens_per_batch: int, hidden_window: int):
        self._model = model
        self._pad_id = pad_id
        self._max_tokens = max_tokens_per_batch
        self._window = hidden_window
        self._prefix_states = PrefixStates(model)
        self._hidden: torch.Tensor | None = None
        head = model.get_output_embeddings()
        head.register_forward_pre_hook(self._remember_hidden)

    def _remember_hidden(self, _module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        self._hidden = inputs[0]  # what the LM head reads: the final hidden states after the last norm

    def __call__(
        self, rows: Sequence[tuple[list[int], list[int]]], *, top: bool = False, geometry: bool = False
    ) -> list[PassFacts]:
        """Score rows of (prompt ids, response ids); `top` and `geometry` ask for the further facts."""
        prefix = common_prefix([prompt for prompt, _ in rows])
        with torch.inference_mode():
            states = self._prefix_states(prefix)
            skipped = len(prefix) if states is not None else 0
            suffixes = [(prompt[skipped:], response) for prompt, response in rows]
            facts: dict[int, PassFacts] = {}
            for batch in pack([len(prompt) + len(response) for prompt, response in suffixes], self._max_tokens):
                found = self._forward([suffixes[index] for index in batch], states, skipped, top, geometry)
                facts.update(zip(batch, found, strict=True))
        return [facts[index] for index in range(len(rows))]

    def _forward(
        self, rows: list[tuple[list[int], list[int]]], states: Cache | None, skipped: int, top: bool, geometry: bool
    ) -> list[PassFacts]:
        """Facts of a batch whose first `skipped` tokens stand in `states` already."""
        batch = pad_batch([(prompt + response, len(prompt)) for prompt, response in rows], self._pad_id)
        on = self._model.device
        seen = torch.ones(len(rows), skipped, dtype=batch.attention_mask.dtype)
        output = self._model(
            input_ids=batch.input_ids.to(on),
            attention_mask=torch.cat([seen, batch.attention_mask], dim=1).to(on),
            logits_to_keep=batch.keep.to(on),
            past_key_values=states,
            use_cache=states is not None,
        )
        logits = output.logits  # (N, V), N = response tokens of the batch
        counts = [len(response) for _, response in rows]
        logp = _split(token_logprobs(logits, batch.targets.to(on)), counts)
        columns: dict[str, list[Array]] = {}
        if top:
            ids, top_logp = top_tokens(logits)
            columns |= {"top": _split(ids, counts), "top_logp": _split(top_logp, counts)}
        if geometry:
            assert self._hidden is not None
            hidden = self._hidden.reshape(-1, self._hidden.shape[-1]).split(counts)
            found = [hidden_geometry(states, self._window) for states in hidden]
            columns |= {
                "hidden_norm": [norm.cpu().numpy() for norm, _ in found],
                "hidden_cos": [cos.cpu().numpy() for _, cos in found],
            }
        self._hidden = None
        return [
            PassFacts(logp=logp[index], **{name: values[index] for name, values in columns.items()})
            for index in range(len(rows))
        ]


def _split(values: torch.Tensor, counts: list[int]) -> list[Array]:
    """Cut a batch's token values (N,) into rows."""
    return np.split(values.cpu().numpy(), np.cumsum(counts)[:-1])
