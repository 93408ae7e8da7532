"""Facts about the tokens of a table of examples, in this process."""

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Any

import pyarrow as pa

from nlft_ray.config import ScoreConfig
from nlft_ray.execution.replica import replica_of
from nlft_ray.execution.work import WorkResult
from nlft_ray.models.loading import load_model, load_tokenizer, max_length
from nlft_ray.models.turns import end_of_turn, instruction_role
from nlft_ray.stages.score.contexts import Context, RowBuilder, ScoringRow
from nlft_ray.stages.score.finished_batches import FinishedBatches
from nlft_ray.stages.score.scorer import ContextFacts, Scorer, ScoringBatch
from nlft_ray.tables.schema import SCORED, problem_with_example

ROWS_AT_ONCE = 256
"""Rows that are made ids of at a time, while the model runs over those before them."""


@dataclass
class PreparedRows:
    """Some rows of a table, as ids."""

    rows: list[ScoringRow] = field(default_factory=list)
    rejects: list[tuple[Any, str]] = field(default_factory=list)
    truncated: int = 0


class ScoreWorker:
    """Facts about each response under its contexts: two for a correct one, three for an incorrect one.

    What it counts, besides rows:
        contexts: contexts of all rows.
        tokens_scored: response tokens times contexts; each has got a log-probability.
        tokens_run: tokens that went through the model for that. What a row's contexts share runs once; a beginning that
            all rows share is counted once for the table. Neither padding nor what a kill made run twice is counted.
        padded_contexts: contexts that ran by themselves, since the model takes no several texts in one sequence.
    """

    schema = SCORED

    def __init__(self, config: ScoreConfig, finished: FinishedBatches | None = None):
        """`finished` keeps batches over a kill; without it, the whole table is scored again."""
        self._config = config
        self._finished = finished
        tokenizer = load_tokenizer(config.model)
        end = end_of_turn(tokenizer, config.model, config.prompts).id
        role = instruction_role(tokenizer, config.prompts)
        self._max_length = max_length(config.model)
        self._build = RowBuilder(tokenizer, config.prompts.model_copy(update={"instruction_role": role}), end)
        self._scorer = replica_of(config.pool, load_scorer, config, end)
        self._vocabulary = self._scorer.vocabulary()
        self._is_shared = config.pool.tensor_parallel > 1

    def __call__(self, table: pa.Table, seed: int) -> WorkResult:
        if self._finished is not None:
            self._finished.begin(table["id"].to_pylist())
        rejects: list[tuple[Any, str]] = []
        batches: list[ScoringBatch] = []
        counts: Counter[str] = Counter()

        def prepared_batches() -> Iterator[ScoringBatch]:
            for prepared in self._prepared(table):
                rejects.extend(prepared.rejects)
                counts.update(_counts(prepared.rows) | {"truncated": prepared.truncated})
                some = self._scorer.batches(prepared.rows)
                batches.extend(some)
                yield from some

        tables = [self.schema.empty_table(), *self._tables(prepared_batches())]
        counts["tokens_run"] = _tokens_run(batches)
        if not self._scorer.packs():
            counts["padded_contexts"] = counts["contexts"]
        return WorkResult(
            pa.concat_tables(tables),
            rejects,
            tokens=counts["tokens_run"],
            counts={name: float(count) for name, count in counts.items()},
        )

    def _prepared(self, table: pa.Table) -> Iterator[PreparedRows]:
        """The table's rows as ids, some at a time: while the model runs over them, a thread prepares the next."""
        coming: Future[PreparedRows] | None = None
        with ThreadPoolExecutor(1, "rows-to-score") as thread:
            for start in range(0, table.num_rows, ROWS_AT_ONCE):
                following = thread.submit(self._prepare, table.slice(start, ROWS_AT_ONCE))
                if coming is not None:
                    yield coming.result()
                coming = following
            if coming is not None:
                yield coming.result()

    def _prepare(self, table: pa.Table) -> PreparedRows:
        prepared = PreparedRows()
        for example in table.to_pylist():
            row = problem_with_example(example) or self._build(example)
            fitted = row if isinstance(row, str) else self._fit(row)
            if isinstance(fitted, str):
                prepared.rejects.append((example, fitted))
            else:
                prepared.rows.append(fitted)
                prepared.truncated += fitted is not row
        return prepared

    def _fit(self, row: ScoringRow) -> ScoringRow | str:
        """The row if it fits the model in every context, or cut at its end where that was asked for; else why not."""
        ids = chain(row.response_ids, *row.prompts.values())
        if (largest := max(ids)) >= self._vocabulary:
            return f"unknown token: id {largest}, where the model knows {self._vocabulary} of them"
        room = self._max_length - max(len(prompt) for prompt in row.prompts.values())
        if len(row.response_ids) <= room:
            return row
        if self._config.too_long == "reject" or room < 1:
            lengths = ", ".join(f"{context} {length}" for context, length in row.lengths().items())
            return f"too long: {lengths} tokens; the model takes {self._max_length}"
        return ScoringRow(row.id, row.verdict, row.prompts, row.response_ids[:room], row.standard_ids)

    def _tables(self, batches: Iterator[ScoringBatch]) -> Iterator[pa.Table]:
        """The scored rows of each batch, those that are finished as they are; some batches are launched ahead."""
        under_way: deque[Callable[[], pa.Table]] = deque()
        ahead = 0 if self._is_shared else self._scorer.ahead
        try:
            for batch in batches:
                under_way.append(self._begin(batch))
                while len(under_way) > ahead:
                    yield under_way.popleft()()
            while under_way:
                yield under_way.popleft()()
        finally:
            if self._finished is not None:
                self._finished.wait()  # nothing may be written any more when the stage removes what was

    def _begin(self, batch: ScoringBatch) -> Callable[[], pa.Table]:
        """Launch a batch that is not finished; what waits for its scored rows."""
        finished = self._finished
        if finished is not None:
            table = finished.get(batch)
            if table is not None:
                return lambda: table
            finished.write_when_due()
        # what waits for other processes cannot come from them
        facts = partial(self._scorer.score, batch) if self._is_shared else self._scorer.launch(batch)

        def scored() -> pa.Table:
            rows = [_scored_row(row, row_facts) for row, row_facts in zip(batch.rows, facts(), strict=True)]
            table = pa.Table.from_pylist(rows, schema=self.schema)
            if finished is not None:
                finished.add(batch, table)
            return table

        return scored


def load_scorer(config: ScoreConfig, pad_id: int) -> Scorer:
    """The scorer of this process, whose model may be one part of several. Padding is never read: any id will do."""
    return Scorer(
        load_model(config.model, spread=True, tensor_parallel=config.pool.tensor_parallel),
        pad_id=pad_id,
        max_tokens_per_batch=config.max_tokens_per_batch,
        hidden_window=config.hidden_window,
    )


def _scored_row(row: ScoringRow, facts: dict[Context, ContextFacts]) -> dict[str, Any]:
    base, judge, standard = facts["base"], facts.get("judge"), facts.get("standard")
    assert base.hidden_cos is not None
    return {
        "id": row.id,
        "verdict": row.verdict,
        "input_ids": row.prompts["base"] + row.response_ids,
        "response_start": len(row.prompts["base"]),
        "logp_base": base.logp,
        "logp_judge": judge.logp if judge else None,
        "logp_standard": standard.logp if standard else None,
        "top_standard": standard.top if standard else None,
        "top_logp_standard": standard.top_logp if standard else None,
        "hidden_norm": base.hidden_norm,
        "hidden_cos": base.hidden_cos.reshape(-1),
        "standard_ids": row.standard_ids,
    }


def _counts(rows: Sequence[ScoringRow]) -> dict[str, int]:
    return {
        "correct": sum(row.verdict == "correct" for row in rows),
        "incorrect": sum(row.verdict == "incorrect" for row in rows),
        "without_standard_answer": sum("standard" not in row.prompts for row in rows),
        "response_tokens": sum(len(row.response_ids) for row in rows),
        "contexts": sum(len(row.prompts) for row in rows),
        "tokens_scored": sum(len(row.response_ids) * len(row.prompts) for row in rows),
    }


def _tokens_run(batches: Sequence[ScoringBatch]) -> int:
    prefixes = {tuple(prefix) for batch in batches for prefix in batch.prefixes.values()}
    return sum(batch.tokens for batch in batches) + sum(map(len, prefixes))
