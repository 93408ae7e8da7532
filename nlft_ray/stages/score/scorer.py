"""Forward passes over prompts and responses: log-probabilities and hidden-state geometry of the response tokens.

A row's contexts share the question, so they run as a tree: what its prompts have in common is the trunk, the rest of
each prompt with the response a branch. The trees of a batch stand one after another in a single sequence
(`models.packing`). Where the model does not take that, every context is padded and runs by itself.

Within a batch the host waits for nothing: all indices are known to it, and a pass's facts come back in one transfer.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from operator import itemgetter
from typing import Any, get_args

import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from nlft_ray.config.options import USUAL_MAX_TOKENS_PER_BATCH
from nlft_ray.core.alignment import pad_batch
from nlft_ray.core.geometry import hidden_geometry
from nlft_ray.core.prefix import common_prefix_length
from nlft_ray.models.abilities import longest_together, start_packing, stores_prefixes
from nlft_ray.models.loading import vocabulary_size
from nlft_ray.models.memory import Batches
from nlft_ray.models.packing import PackedTexts, moved
from nlft_ray.models.prefix_states import PrefixStates
from nlft_ray.models.sharding import is_shared
from nlft_ray.stages.score.contexts import Context, ScoringRow
from nlft_ray.stages.score.response_head import ResponseHead
from nlft_ray.stages.score.transfer import to_host

Array = NDArray[Any]

_TOP: set[Context] = {"standard"}  # the contexts whose most probable tokens are asked for
_GEOMETRY: set[Context] = {"base"}  # and whose hidden states
_ADVICE = (
    "Lower model.max_length (rows that exceed it are rejected, or cut with too_long=truncate), take "
    "model.dtype=bfloat16, or give a worker more: pool.gpus_per_worker, or fewer workers on a node by pool.max_workers."
)
_SORTED = 16  # passes among which padded texts are sorted by length


@dataclass(frozen=True)
class ContextFacts:
    """Facts about the n response tokens of one row under one context."""

    logp: Array  # (n,) float32
    top: Array | None = None  # (n,) int32: the most probable token at each place
    top_logp: Array | None = None  # (n,) float32
    hidden_norm: Array | None = None  # (n,) float32
    hidden_cos: Array | None = None  # (n, K) float32


RowFacts = dict[Context, ContextFacts]


@dataclass(frozen=True)
class Tree:
    """Prompts of a row, which share their beginning, each followed by the response. Nothing of a branch is empty."""

    row: int  # of the batch
    trunk: list[int]
    rests: dict[Context, list[int]]  # what each prompt adds to the trunk
    response_ids: list[int]

    def __len__(self) -> int:
        """Tokens that run: a response's last token predicts nothing that is asked for."""
        return len(self.trunk) + sum(len(rest) + len(self.response_ids) - 1 for rest in self.rests.values())

    def parts(self, max_tokens: int) -> list["Tree"]:
        """The tree in as few as hold at most `max_tokens` tokens (or a single context); each has the trunk."""
        contexts = list(self.rests)
        lengths = [len(rest) + len(self.response_ids) - 1 for rest in self.rests.values()]
        slices = fill(lengths, max_tokens - len(self.trunk))
        return [replace(self, rests={context: self.rests[context] for context in contexts[part]}) for part in slices]


@dataclass(frozen=True, eq=False)
class ScoringBatch:
    """Rows that are scored by themselves, whatever else is scored."""

    rows: Sequence[ScoringRow]
    prefixes: Mapping[Context, list[int]]
    """The common beginning of all prompts of a context here: it runs once, and its states are stored. May be empty."""
    forests: Sequence[Sequence[Tree]]
    """The trees of each pass: the rest of each row that is still to run; empty where contexts are padded."""

    @property
    def tokens(self) -> int:
        """Tokens that run, apart from prefixes and padding."""
        if self.forests:
            return sum(len(tree) for forest in self.forests for tree in forest)
        return sum(
            length - len(self.prefixes[context]) for row in self.rows for context, length in row.lengths().items()
        )


Responses = Sequence[tuple[int, Context]]
"""Responses of a batch: the number of the row, and the context that it stands under."""


@dataclass(frozen=True, eq=False)
class ForwardPass:
    """(B, T) tokens that run at once, with N response tokens among them, response after response."""

    prefix: list[int]  # whose stored states the tokens continue
    inputs: dict[str, Any]  # arguments of the model's forward
    positions: torch.Tensor  # (N,) int64, those that predict response tokens, row after row of B · T
    targets: torch.Tensor  # (N,) int64, the response tokens
    responses: Responses
    counts: list[int]  # how many of the N tokens each response has


MakePass = Callable[[Responses], ForwardPass]
ReadFacts = Callable[[], list[dict[str, Array]]]
"""Waits for the facts of each response of a pass."""


class Scorer:
    """Runs one model over batches of a token budget."""

    def __init__(self, model: PreTrainedModel, *, pad_id: int, max_tokens_per_batch: int | None, hidden_window: int):
        self._model = model
        self._pad_id = pad_id
        kind = "cpu" if model.device.type == "cpu" else "gpu"
        self._max_tokens = max_tokens_per_batch or USUAL_MAX_TOKENS_PER_BATCH[kind]
        parts = set((getattr(model, "hf_device_map", None) or {"": kind}).values())
        self.ahead = 0 if kind == "cpu" else len(parts)
        """Batches to launch before the results of one are asked for, so that every GPU that holds a part of the model
        works; none on a CPU, which works only while it is waited for."""
        self._window = hidden_window
        self._stores_prefixes = stores_prefixes(model)
        self._prefix_states = PrefixStates(model)
        self._head = ResponseHead(model)
        self._memory = Batches("responses under their contexts", _ADVICE, halves=not is_shared(model))
        self._packs = start_packing(model)
        self._longest_together = longest_together(model)

    def packs(self) -> bool:
        """Whether what a row's contexts share runs once; else every context is padded and runs by itself."""
        return self._packs

    def vocabulary(self) -> int:
        """Number of ids that the model knows."""
        return vocabulary_size(self._model)

    def batches(self, rows: Sequence[ScoringRow]) -> list[ScoringBatch]:
        """The rows in their order, in batches: of one pass, or of some padded ones."""
        batches: list[ScoringBatch] = []
        for alone, neighbours in groupby(rows, self._runs_alone):
            some = list(neighbours)
            if alone:
                batches += [ScoringBatch([row], {context: [] for context in row.prompts}, []) for row in some]
            else:
                batches += self._batches_of_trees(some) if self._packs else self._padded_batches(some)
        return batches

    def _runs_alone(self, row: ScoringRow) -> bool:
        """Whether the row's length changes what the model makes of all texts beside it, or needs a mask too large."""
        return self._longest_together is not None and max(row.lengths().values()) > self._longest_together

    def _batches_of_trees(self, rows: Sequence[ScoringRow]) -> Iterator[ScoringBatch]:
        trunks = [_common_prefix(list(row.prompts.values())) for row in rows]
        prefix = _common_prefix(trunks)
        trees = [_tree(0, row, trunk, prefix) for row, trunk in zip(rows, trunks, strict=True)]
        for part in fill([len(tree) for tree in trees], self._max_tokens):
            first = trees[part.start]
            if len(first) > self._max_tokens:
                yield self._batch_in_passes(rows[part.start], trunks[part.start], prefix)
            else:
                forest = [replace(tree, row=index) for index, tree in enumerate(trees[part])]
                yield ScoringBatch(rows[part], dict.fromkeys(get_args(Context), prefix), [forest])

    def _batch_in_passes(self, row: ScoringRow, trunk: list[int], prefix: list[int]) -> ScoringBatch:
        """A row whose contexts together are too many tokens: some of them in each pass, in most cases one.

        Its trunk runs in every pass, or where that is less work once, with its states stored, as prefixes are.
        """
        parts = _tree(0, row, trunk, prefix).parts(self._max_tokens)
        if len(trunk) < len(parts) * (len(trunk) - len(prefix)):
            prefix, parts = trunk, _tree(0, row, trunk, trunk).parts(self._max_tokens)
        return ScoringBatch([row], dict.fromkeys(get_args(Context), prefix), [[part] for part in parts])

    def _padded_batches(self, rows: Sequence[ScoringRow]) -> list[ScoringBatch]:
        tokens = [sum(row.lengths().values()) for row in rows]
        slices = fill(tokens, _SORTED * self._max_tokens)
        return [ScoringBatch(rows[part], self._prefixes(rows[part]), []) for part in slices]

    def _prefixes(self, rows: Sequence[ScoringRow]) -> dict[Context, list[int]]:
        """The common beginning of the prompts of each context that these rows need."""
        prefixes: dict[Context, list[int]] = {}
        for context in get_args(Context):
            prompts = [row.prompts[context] for row in rows if context in row.prompts]
            if prompts:
                prefixes[context] = _common_prefix(prompts) if self._stores_prefixes else []
        return prefixes

    @torch.inference_mode()
    def launch(self, batch: ScoringBatch) -> Callable[[], list[RowFacts]]:
        """Have the model begin with a batch.

        Returns:
            What waits for its end: facts of every row under each of its contexts. On a GPU other batches may be
            launched before that, so that it has no pause.
        """
        passes: list[tuple[Responses, ReadFacts]] = []
        for responses, make_pass in self._passes(batch):
            passes += self._memory.run(responses, partial(_length, batch), partial(self._launch_some, make_pass))

        def facts() -> list[RowFacts]:
            found: list[RowFacts] = [{} for _ in batch.rows]
            for responses, read in passes:
                for (row, context), values in zip(responses, read(), strict=True):
                    found[row][context] = ContextFacts(**values)
            return found

        return facts

    def score(self, batch: ScoringBatch) -> list[RowFacts]:
        """Facts of every row of a batch under each of its contexts."""
        return self.launch(batch)()

    def _launch_some(self, make_pass: MakePass, responses: Responses) -> list[tuple[Responses, ReadFacts]]:
        return [(responses, self._run(make_pass(responses)))]

    def _passes(self, batch: ScoringBatch) -> Iterator[tuple[Responses, MakePass]]:
        """The responses of each pass, and how to make one of them, or of some of them."""
        for forest in batch.forests:
            responses = [(tree.row, context) for tree in forest for context in tree.rests]
            yield responses, partial(_forest_pass, forest, batch.prefixes["base"])
        if not batch.forests:
            yield from self._padded_passes(batch)

    def _padded_passes(self, batch: ScoringBatch) -> Iterator[tuple[Responses, MakePass]]:
        """Context after context, texts of similar length together."""
        for context, prefix in batch.prefixes.items():
            responses = [(index, context) for index, row in enumerate(batch.rows) if context in row.prompts]
            for part in pack([_length(batch, response) for response in responses], self._max_tokens):
                yield [responses[number] for number in part], partial(_padded_pass, batch, prefix, self._pad_id)

    def _run(self, forward_pass: ForwardPass) -> ReadFacts:
        """Launch a pass; what waits for the facts of each of its responses."""
        stored = self._prefix_states.get(forward_pass.prefix)
        inputs = moved(forward_pass.inputs, self._model.device)
        inputs |= {"past_key_values": stored, "use_cache": stored is not None}
        states = self._head.states(inputs, forward_pass.positions, forward_pass.targets).split(forward_pass.counts)
        facts = []
        for (_, context), own in zip(forward_pass.responses, states, strict=True):
            values = self._head.token_facts(own, with_top=context in _TOP)
            if context in _GEOMETRY:
                values["hidden_norm"], values["hidden_cos"] = hidden_geometry(own.hidden, self._window)
            facts.append(values)
        return to_host(facts)


def _common_prefix(prompts: list[list[int]]) -> list[int]:
    return prompts[0][: common_prefix_length(prompts)] if prompts else []


def _length(batch: ScoringBatch, response: tuple[int, Context]) -> int:
    """Tokens of a response with its prompt, but for the prefix."""
    index, context = response
    return batch.rows[index].lengths()[context] - len(batch.prefixes[context])


def _tree(index: int, row: ScoringRow, trunk: list[int], prefix: list[int]) -> Tree:
    """A row's prompts behind a prefix, of which the trunk is the continuation."""
    rests = {context: prompt[len(trunk) :] for context, prompt in row.prompts.items()}
    return Tree(index, trunk[len(prefix) :], rests, row.response_ids)


def _forest_pass(forest: Sequence[Tree], prefix: list[int], responses: Responses) -> ForwardPass:
    """Trees in one sequence, without padding, which continue the same prefix: the branches of these responses, those of
    a row together."""
    trees = {tree.row: tree for tree in forest}
    texts = PackedTexts(stored=len(prefix))
    positions: list[int] = []
    targets: list[int] = []
    for row, branches in groupby(responses, key=itemgetter(0)):
        tree = trees[row]
        trunk = texts.append(tree.trunk, texts.beginning) if tree.trunk else texts.beginning
        for _, context in branches:
            texts.append([*tree.rests[context], *tree.response_ids[:-1]], trunk)
            end = len(texts.ids)
            positions.extend(range(end - len(tree.response_ids), end))
            targets.extend(tree.response_ids)
    counts = [len(trees[row].response_ids) for row, _ in responses]
    return ForwardPass(prefix, texts.inputs(), torch.tensor(positions), torch.tensor(targets), responses, counts)


def _padded_pass(batch: ScoringBatch, prefix: list[int], pad_id: int, responses: Responses) -> ForwardPass:
    """Prompts with responses, padded at the right: causal attention never looks there, and a mask would cost time."""
    texts = []
    for index, context in responses:
        row, stored = batch.rows[index], len(prefix)
        texts.append((row.prompts[context][stored:] + row.response_ids, len(row.prompts[context]) - stored))
    padded = pad_batch(texts, pad_id)
    counts = [len(batch.rows[index].response_ids) for index, _ in responses]
    positions = padded.keep.flatten().nonzero()[:, 0]
    return ForwardPass(prefix, {"input_ids": padded.input_ids}, positions, padded.targets, responses, counts)


def pack(lengths: list[int], max_tokens: int) -> list[list[int]]:
    """Indices in batches of similar length, each of at most `max_tokens` padded tokens (or a single text)."""
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: lengths[index]):
        # sorted upwards, so the newcomer is the longest text of its batch
        if batches and lengths[index] * (len(batches[-1]) + 1) <= max_tokens:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def fill(lengths: list[int], max_tokens: int) -> list[slice]:
    """Neighbours in batches of at most `max_tokens` tokens (or a single text)."""
    batches: list[slice] = []
    room = 0
    for index, length in enumerate(lengths):
        if batches and length <= room:
            batches[-1] = slice(batches[-1].start, index + 1)
        else:
            batches.append(slice(index, index + 1))
            room = max_tokens
        room -= length
    return batches
