"""Scores a table of examples, in this process."""

from typing import Any

import pyarrow as pa

from nlft_ray.config import ScoreConfig
from nlft_ray.execution.work import WorkResult
from nlft_ray.models.loading import end_of_turn_id, load_model, load_tokenizer, max_length
from nlft_ray.stages.score.kept import KeptBatches
from nlft_ray.stages.score.passes import Context, RowBuilder, ScoringRow, lengths
from nlft_ray.stages.score.scorer import Batch, PassFacts, Scorer
from nlft_ray.tables.schema import SCORED, problem_with_example


class ScoreWorker:
    """Two forward passes for a correct response, three for an incorrect one, no gradient."""

    schema = SCORED

    def __init__(self, config: ScoreConfig, kept: KeptBatches | None = None):
        self._config = config
        self._kept = kept
        tokenizer = load_tokenizer(config.model)
        end_of_turn = end_of_turn_id(tokenizer, config.model)
        self._max_length = max_length(config.model)
        self._build = RowBuilder(tokenizer, config.prompts, end_of_turn)
        self._scorer = Scorer(
            load_model(config.model, spread=True),
            pad_id=end_of_turn,  # masked, so any id will do
            max_tokens_per_batch=config.max_tokens_per_batch,
            hidden_window=config.hidden_window,
        )

    def __call__(self, table: pa.Table, seed: int) -> WorkResult:
        rows: list[ScoringRow] = []
        rejects: list[tuple[Any, str]] = []
        truncated = 0
        for example in table.to_pylist():
            problem = problem_with_example(example)
            if problem is None:
                row = self._build(example)
                fitted = self._fit(row)
                if fitted is not None:
                    rows.append(fitted)
                    truncated += len(fitted.response_ids) < len(row.response_ids)
                    continue
                found = ", ".join(f"{context} {length}" for context, length in lengths(row).items())
                problem = f"too long: {found} tokens; the model takes {self._max_length}"
            rejects.append((example, problem))
        batches = self._scorer.batches(rows)
        tables = self._kept(batches, self._scored) if self._kept else map(self._scored, batches)
        return WorkResult(
            pa.concat_tables([self.schema.empty_table(), *tables]),
            rejects,
            tokens=sum(sum(lengths(row).values()) for row in rows),
            counts=_counts(rows) | {"truncated": float(truncated)} | self._padded_passes(rows),
        )

    def _scored(self, batch: Batch) -> pa.Table:
        rows = [_scored_row(row, facts) for row, facts in zip(batch.rows, self._scorer.score(batch), strict=True)]
        return pa.Table.from_pylist(rows, schema=self.schema)

    def _padded_passes(self, rows: list[ScoringRow]) -> dict[str, float]:
        return {} if self._scorer.takes_trees else {"padded_passes": float(sum(len(row.prompts) for row in rows))}

    def _fit(self, row: ScoringRow) -> ScoringRow | None:
        """The row if it fits the model in every context; else cut at its end, where that was asked for."""
        room = self._max_length - max(len(prompt) for prompt in row.prompts.values())
        if len(row.response_ids) <= room:
            return row
        if self._config.too_long == "reject" or room < 1:
            return None
        return ScoringRow(row.id, row.verdict, row.prompts, row.response_ids[:room], row.standard_ids)


def _scored_row(row: ScoringRow, facts: dict[Context, PassFacts]) -> dict[str, Any]:
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


def _counts(rows: list[ScoringRow]) -> dict[str, float]:
    return {
        "correct": float(sum(row.verdict == "correct" for row in rows)),
        "incorrect": float(sum(row.verdict == "incorrect" for row in rows)),
        "without_standard_answer": float(sum("standard" not in row.prompts for row in rows)),
        "response_tokens": float(sum(len(row.response_ids) for row in rows)),
        "forward_passes": float(sum(len(row.prompts) for row in rows)),
    }
