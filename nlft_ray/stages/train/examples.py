"""From the scored table to training examples: a policy weighs every row, here and at no other time."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from nlft_ray.core.policies import Policy, TokenWeights
from nlft_ray.errors import UserError
from nlft_ray.storage.folder import Folder
from nlft_ray.tables.schema import CORRECT, INCORRECT
from nlft_ray.tables.scored import facts_of
from nlft_ray.tables.shards import DATA

_COLUMNS = [
    "id",
    "verdict",
    "input_ids",
    "response_start",
    "logp_base",
    "logp_judge",
    "logp_standard",
    "hidden_norm",
    "hidden_cos",
    "standard_ids",
]
_COUNTED = (
    *("rows", "rows_without_weight", "examples", CORRECT, INCORRECT, "tokens", "weighted_tokens", "silenced_tokens"),
    *("scoring_tokens", "losing_tokens", "lowered_tokens", "growth_truncated"),
)
_ROWS_AT_ONCE = 256


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """One row as it is trained on: T tokens, the last n of which are trained."""

    id: str
    input_ids: npt.NDArray[np.int32]
    """(T,) base prompt and trained tokens."""
    response_start: int
    """T - n."""
    likelihood: npt.NDArray[np.float32]
    """(n,) weights of -log p."""
    unlikelihood: npt.NDArray[np.float32]
    """(n,) weights of -log(1 - p)."""
    anchor: npt.NDArray[np.float32]
    """(n,) how much of `likelihood` the policy's plain likelihood term brings; told apart in the metrics only."""

    @property
    def n(self) -> int:
        return len(self.likelihood)

    @property
    def weight(self) -> float:
        """Sum of all weights."""
        return float(self.likelihood.sum(dtype=np.float64) + self.unlikelihood.sum(dtype=np.float64))

    @property
    def weighted(self) -> npt.NDArray[np.bool_]:
        """(n,) the tokens that have a weight: the model is asked for no other."""
        return (self.likelihood > 0) | (self.unlikelihood > 0)


@dataclass
class Weighing:
    """A policy at work on a table: yields examples, counts what it saw, keeps what could not be used."""

    policy: Policy
    max_length: int
    counts: Counter[str] = field(default_factory=lambda: Counter(dict.fromkeys(_COUNTED, 0)))
    rejects: list[tuple[Mapping[str, Any], str]] = field(default_factory=list)

    @property
    def reject_reasons(self) -> dict[str, int]:
        return dict(Counter(reason for _, reason in self.rejects))

    @property
    def set_aside_reasons(self) -> dict[str, int]:
        count = self.counts["rows_without_weight"]
        return {f"policy '{self.policy.name}' gives no weight to any token": count} if count else {}

    def examples(self, source: Folder) -> Iterator[Example]:
        """The rows that have any weight, in the order of the table.

        Raises:
            UserError: the table's facts are not usable, or the policy gives no weight to any row.
        """
        for row in _rows(source):
            self.counts["rows"] += 1
            if example := self._example(row):
                yield example
        if self.counts["examples"] == 0:
            raise UserError(self._why_nothing_is_left(source))

    def _example(self, row: dict[str, Any]) -> Example | None:
        trained = self._trained_ids(row)
        if trained is None:
            return None
        weights = self._weigh(row, len(trained))
        example = Example(
            id=row["id"],
            input_ids=np.concatenate([row["input_ids"][: row["response_start"]], trained]),
            response_start=row["response_start"],
            likelihood=weights.likelihood.astype(np.float32),
            unlikelihood=weights.unlikelihood.astype(np.float32),
            anchor=weights.anchor.astype(np.float32),
        )
        if not example.weighted.any():
            self.counts["rows_without_weight"] += 1
            return None
        self._count(row["verdict"], example, weights)
        return example

    def _trained_ids(self, row: dict[str, Any]) -> npt.NDArray[np.int32] | None:
        """The tokens that the policy trains; None where this row has none."""
        if self.policy.target == "response":
            return row["input_ids"][row["response_start"] :]
        if row["standard_ids"] is None or len(row["standard_ids"]) == 0:
            self._reject(row, f"no standard answer, which policy '{self.policy.name}' trains on")
            return None
        length = row["response_start"] + len(row["standard_ids"])
        if length > self.max_length:
            self._reject(row, f"prompt and standard answer have more than {self.max_length} tokens")
            return None
        return row["standard_ids"]

    def _reject(self, row: dict[str, Any], reason: str) -> None:
        self.rejects.append(({"id": row["id"]}, reason))

    def _weigh(self, row: dict[str, Any], n: int) -> TokenWeights:
        if self.policy.target == "standard_answer":
            return self.policy.weigh_tokens(n)
        try:
            weights = self.policy.weigh(facts_of(row))
            if len(weights.weight) != n:
                raise ValueError(f"{n} response tokens, but facts about {len(weights.weight)}")
            return weights
        except ValueError as error:
            raise UserError(
                f"input: row '{row['id']}' of the scored table is damaged: {error}. Score it again."
            ) from error

    def _count(self, verdict: str, example: Example, weights: TokenWeights) -> None:
        saliency = "scoring_tokens" if verdict == CORRECT else "losing_tokens"
        self.counts.update(
            {
                "examples": 1,
                verdict: 1,
                "tokens": example.n,
                "weighted_tokens": int(example.weighted.sum()),
                "silenced_tokens": int((~example.weighted).sum()),
                "lowered_tokens": int((example.unlikelihood > 0).sum()),
                saliency: int(weights.saliency.sum()),
                "growth_truncated": weights.growth_truncated,
            }
        )

    def _why_nothing_is_left(self, source: Folder) -> str:
        seen = f"{self.counts['rows']} rows, {len(self.rejects)} of them unusable"
        if self.rejects:
            seen += f" ({self.rejects[0][1]})"
        return (
            f"policy: '{self.policy.name}' gives no weight to any row of {source} ({seen}), so there is nothing to "
            "train on. Choose another policy or other numbers for it, or bring more responses: "
            "'rft' needs correct ones, 'sft' needs standard answers."
        )


def _rows(source: Folder) -> Iterator[dict[str, Any]]:
    """Every row of the scored table in order, its lists as arrays: Python lists would take most of the time."""
    data = source / DATA
    for name in data.files(".parquet"):
        for batch in data.open_parquet(name).iter_batches(batch_size=_ROWS_AT_ONCE, columns=_COLUMNS):
            columns = {column: _values(batch.column(column)) for column in _COLUMNS}
            for index in range(batch.num_rows):
                yield {column: values[index] for column, values in columns.items()}


def _values(column: pa.Array) -> list[Any]:
    if not pa.types.is_list(column.type):
        return column.to_pylist()
    flat = column.values.to_numpy(zero_copy_only=False)
    offsets = column.offsets.to_numpy()
    return [
        flat[start:stop].copy() if valid else None
        for start, stop, valid in zip(offsets[:-1], offsets[1:], column.is_valid().to_pylist(), strict=True)
    ]
