"""A finished grid as two tables: what each method cost in each cell, and which test questions its model solved."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from experiments.grid import Outcome, Results
from nlft_ray.storage.folder import Folder
from nlft_ray.tables.shards import read_rows

BEFORE = "before"
"""The untrained model, where methods are named."""


@dataclass(frozen=True)
class Tables:
    """What the record is made of."""

    outcomes: pa.Table
    """Columns examples, seed, method, accuracy, rows_trained, generated_tokens, peak_bytes; seconds, for each stage."""
    answers: pa.Table
    """Columns examples, seed, method, id, correct. The untrained model stands there once: 0 examples, seed 0."""

    def accuracies(self, method: str, examples: int) -> list[float]:
        """Accuracy of a method for each seed."""
        return self._of(self.outcomes, method, examples).column("accuracy").to_pylist()

    def correct(self, method: str, examples: int) -> npt.NDArray[np.bool_]:
        """(seeds, questions), whether each test question was answered right; questions in the order of their ids."""
        if method == BEFORE:
            one = self._of(self.answers, BEFORE, 0).sort_by("id").column("correct").to_numpy()
            seeds = len(pc.unique(self.outcomes.column("seed")))
            return np.tile(one, (seeds, 1))
        rows = self._of(self.answers, method, examples).sort_by([("seed", "ascending"), ("id", "ascending")])
        return rows.column("correct").to_numpy().reshape(len(pc.unique(rows.column("seed"))), -1)

    @cached_property
    def before(self) -> float:
        """Accuracy of the untrained model."""
        return float(self._of(self.answers, BEFORE, 0).column("correct").to_numpy().mean())

    def mean(self, column: str, method: str, examples: int) -> float:
        """Mean over seeds of a column of `outcomes`; of `seconds`, the sum over stages."""
        values = self._of(self.outcomes, method, examples).column(column).to_pylist()
        return float(np.mean([sum(dict(value).values()) if column == "seconds" else value for value in values]))

    def stage_seconds(self, stage: str, method: str, examples: int) -> float:
        """Mean over seeds of the seconds of one stage; 0 where the method has none."""
        rows = self._of(self.outcomes, method, examples).column("seconds").to_pylist()
        return float(np.mean([dict(row).get(stage, 0.0) for row in rows]))

    @staticmethod
    def _of(table: pa.Table, method: str, examples: int) -> pa.Table:
        return table.filter((pc.field("method") == method) & (pc.field("examples") == examples))


def tables_of(results: Results) -> Tables:
    """Read every model's answers."""
    answers = [_answers(results.before, 0, 0, BEFORE)]
    rows = []
    for outcome in results.outcomes:
        own = _answers(outcome.predictions, outcome.cell.examples, outcome.cell.seed, outcome.method)
        answers.append(own)
        rows.append(_row(outcome, float(own.column("correct").to_numpy().mean())))
    seconds = pa.map_(pa.string(), pa.float64())
    types = [("examples", pa.int64()), ("seed", pa.int64()), ("method", pa.string()), ("accuracy", pa.float64())]
    types += [(name, pa.int64()) for name in ("rows_trained", "generated_tokens", "peak_bytes")]
    schema = pa.schema([*types, ("seconds", seconds)])
    return Tables(pa.Table.from_pylist(rows, schema=schema), pa.concat_tables(answers))


def _answers(folder: Folder, examples: int, seed: int, method: str) -> pa.Table:
    rows = list(read_rows(folder))
    return pa.table(
        {
            "examples": pa.array([examples] * len(rows), pa.int64()),
            "seed": pa.array([seed] * len(rows), pa.int64()),
            "method": pa.array([method] * len(rows), pa.string()),
            "id": pa.array([row["id"] for row in rows], pa.string()),
            "correct": pa.array([row["correct"] for row in rows], pa.bool_()),
        }
    )


def _row(outcome: Outcome, accuracy: float) -> dict[str, object]:
    return {
        "examples": outcome.cell.examples,
        "seed": outcome.cell.seed,
        "method": outcome.method,
        "accuracy": accuracy,
        "rows_trained": outcome.rows_trained,
        "generated_tokens": outcome.generated_tokens,
        "peak_bytes": outcome.peak_bytes,
        "seconds": list(outcome.seconds.items()),
    }
