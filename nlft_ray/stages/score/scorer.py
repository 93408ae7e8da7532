"""Forward passes over prompts and responses: log-probabilities and hidden-state geometry of the response tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from nlft_ray.config.options import USUAL_MAX_TOKENS_PER_BATCH
from nlft_ray.core.alignment import pad_batch
from nlft_ray.core.geometry import hidden_geometry
from nlft_ray.core.prefix import common_prefix_length
from nlft_ray.models.packing import moved
from nlft_ray.stages.score.head import ResponseLogits, token_facts
from nlft_ray.stages.score.passes import Context, ScoringRow, fill, lengths, pack
from nlft_ray.stages.score.prefix import PrefixStates
from nlft_ray.stages.score.trees import Forest, Tree, takes_trees

Array = NDArray[Any]

_TOP: set[Context] = {"standard"}  # the contexts whose most probable tokens are asked for
_GEOMETRY: set[Context] = {"base"}  # and whose hidden states
_SORTED = 16  # passes among which padded texts are sorted by length


@dataclass(frozen=True)
class PassFacts:
    """Facts about the n response tokens of one row under one context."""

    logp: Array  # (n,) float32
    top: Array | None = None  # (n,) int32: the most probable token at each place
    top_logp: Array | None = None  # (n,) float32
    hidden_norm: Array | None = None  # (n,) float32
    hidden_cos: Array | None = None  # (n, K) float32


@dataclass(frozen=True, eq=False)
class Pass:
    """(B, T) tokens that run at once, with N response tokens among them, response after response."""

    inputs: dict[str, Any]  # arguments of the model's forward
    keep: torch.Tensor  # (B, T) bool, the positions that predict response tokens
    targets: torch.Tensor  # (N,) int64, the response tokens
    counts: list[int]  # how many of them each response has
    contexts: list[Context]  # which each response stands under


@dataclass(frozen=True, eq=False)
class Batch:
    """Rows that run by themselves, whatever else is scored."""

    rows: Sequence[ScoringRow]
    prefix: Sequence[int]  # tokens that have run before, of which every prompt of these rows is a continuation
    trees: Sequence[Tree]  # of each row, what remains to run; empty where the model takes none


class Scorer:
    """Runs one model over batches of a token budget."""

    def __init__(self, model: PreTrainedModel, *, pad_id: int, max_tokens_per_batch: int | None, hidden_window: int):
        self._model = model
        self._pad_id = pad_id
        kind = "cpu" if model.device.type == "cpu" else "gpu"
        self._max_tokens = max_tokens_per_batch or USUAL_MAX_TOKENS_PER_BATCH[kind]
        self._window = hidden_window
        self._prefix_states = PrefixStates(model)
        self._response_logits = ResponseLogits(model)
        self.takes_trees = takes_trees(model)
        """Whether what a row's contexts share runs once; else every context is padded and runs by itself."""

    @torch.inference_mode()
    def batches(self, rows: Sequence[ScoringRow]) -> list[Batch]:
        """The rows in their order, in batches: of one pass, or of some padded ones where the model takes no trees."""
        if not self.takes_trees:
            tokens = [sum(lengths(row).values()) for row in rows]
            return [Batch(rows[batch], [], []) for batch in fill(tokens, _SORTED * self._max_tokens)]
        trunks = [_common_prefix(list(row.prompts.values())) for row in rows]
        prefix = self._stored(trunks)
        stored = len(prefix)
        trees = [
            Tree(trunk[stored:], [(prompt[len(trunk) :], row.response_ids) for prompt in row.prompts.values()])
            for row, trunk in zip(rows, trunks, strict=True)
        ]
        batches = fill([len(tree) for tree in trees], self._max_tokens)
        return [Batch(rows[batch], prefix, trees[batch]) for batch in batches]

    @torch.inference_mode()
    def score(self, batch: Batch) -> list[dict[Context, PassFacts]]:
        """Facts of every row of a batch under each of its contexts."""
        if not batch.trees:
            return self._score_alone(batch.rows)
        facts = iter(self._run(_forest_pass(batch), self._prefix_states(batch.prefix)))
        return [{context: next(facts) for context in row.prompts} for row in batch.rows]

    def _score_alone(self, rows: Sequence[ScoringRow]) -> list[dict[Context, PassFacts]]:
        """Context after context, each response behind its own prompt."""
        found: list[dict[Context, PassFacts]] = [{} for _ in rows]
        for context in get_args(Context):
            needing = [index for index, row in enumerate(rows) if context in row.prompts]
            passes = [(rows[index].prompts[context], rows[index].response_ids) for index in needing]
            for index, facts in zip(needing, self._score_padded(passes, context), strict=True):
                found[index][context] = facts
        return found

    def _score_padded(self, passes: list[tuple[list[int], list[int]]], context: Context) -> list[PassFacts]:
        """Facts of (prompt ids, response ids) under one context, for models that take no trees."""
        prefix = self._stored([prompt for prompt, _ in passes])
        states, stored = self._prefix_states(prefix), len(prefix)
        found: dict[int, PassFacts] = {}
        for indices in pack([len(prompt) - stored + len(response) for prompt, response in passes], self._max_tokens):
            batch = _padded_pass([passes[index] for index in indices], stored, context, self._pad_id)
            found.update(zip(indices, self._run(batch, states), strict=True))
        return [found[index] for index in range(len(passes))]

    def _stored(self, prompts: list[list[int]]) -> list[int]:
        """What all prompts begin with, where the model can store it; else nothing."""
        prefix = _common_prefix(prompts)
        return [] if self._prefix_states(prefix) is None else prefix

    def _run(self, batch: Pass, states: Cache | None) -> list[PassFacts]:
        """Facts of the pass's responses."""
        inputs = moved(batch.inputs, self._model.device) | {"past_key_values": states, "use_cache": states is not None}
        responses = self._response_logits(inputs, batch.keep, batch.counts)
        found: list[PassFacts] = []
        for context, targets, (hidden, logits) in zip(
            batch.contexts, batch.targets.split(batch.counts), responses, strict=True
        ):
            facts = token_facts(logits, targets, context in _TOP)
            if context in _GEOMETRY:
                facts["hidden_norm"], facts["hidden_cos"] = hidden_geometry(hidden, self._window)
            found.append(PassFacts(**{name: values.cpu().numpy() for name, values in facts.items()}))
        return found


def _common_prefix(prompts: list[list[int]]) -> list[int]:
    return prompts[0][: common_prefix_length(prompts)] if prompts else []


def _forest_pass(batch: Batch) -> Pass:
    """The trees of rows, without padding."""
    forest = Forest.of(batch.trees, len(batch.prefix))
    contexts = [context for row in batch.rows for context in row.prompts]
    counts = [len(row.response_ids) for row in batch.rows for _ in row.prompts]
    return Pass(forest.texts.inputs(), forest.keep_mask(), torch.tensor(forest.targets), counts, contexts)


def _padded_pass(passes: list[tuple[list[int], list[int]]], stored: int, context: Context, pad_id: int) -> Pass:
    """Prompts with responses, padded at the right: causal attention never looks there, and a mask would cost time."""
    batch = pad_batch([(prompt[stored:] + response, len(prompt) - stored) for prompt, response in passes], pad_id)
    counts = [len(response) for _, response in passes]
    return Pass({"input_ids": batch.input_ids}, batch.keep, batch.targets, counts, [context] * len(passes))
