"""From the scored table to weighed examples: a policy weighs every row, here and once for a training.

    OUTPUT/examples/
        trained.arrow     the weighed rows of the input (`schema.WEIGHED`)
        held_out.arrow    those of the table `held_out`, where there is one
        survey.json       written last: what was counted, for which training, and a digest of each file

Whoever is killed leaves a folder without its last file, which is deleted at the next start.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ValidationError

from nlft_ray.config import TrainConfig
from nlft_ray.core.policies import Policy, TokenWeights
from nlft_ray.errors import UserError
from nlft_ray.models.loading import max_length
from nlft_ray.stages.train.examples import Example, write_examples
from nlft_ray.storage.folder import Folder
from nlft_ray.tables.manifest import Identity, Manifest
from nlft_ray.tables.schema import CORRECT, INCORRECT
from nlft_ray.tables.scored import FACTS, facts_of, read_facts
from nlft_ray.tables.shards import REJECTED, rejects_table
from nlft_ray.tables.training import WEIGHED_EXAMPLES

TRAINED, HELD_OUT = "trained.arrow", "held_out.arrow"
_SURVEY = "survey.json"

_COLUMNS = ("id", *FACTS, "input_ids", "response_start", "standard_ids")
_COUNTED = (
    *("rows", "rows_without_weight", "examples", CORRECT, INCORRECT),
    *("trained_tokens", "weighted_tokens", "silenced_tokens"),
    *("scoring_tokens", "losing_tokens", "lowered_tokens", "growth_truncated"),
)


class Survey(BaseModel):
    """The record of the weighing of a training's tables."""

    manifest: Manifest
    """The training's, as far as it is known before the first step."""
    digests: dict[str, str]
    """SHA-256 of each file of examples."""


def survey(config: TrainConfig, identity: Identity, rows: int) -> Manifest:
    """Weigh a training's tables, or find that they stand weighed, whole and for the same identity.

    So what is wrong with them shows before workers start, and these need no policy.

    Args:
        rows: Rows that the input's manifest counts.

    Returns:
        The training's manifest, as far as it is known before the first step.

    Raises:
        UserError: nothing is left to train on, or the table was changed.
    """
    output = Folder(config.output)
    folder = output / WEIGHED_EXAMPLES
    standing = _standing(folder)
    if standing is not None and standing.manifest.identity == identity:
        return standing.manifest
    folder.remove()
    weighing = Weighing(config.policy, max_length(config.model))
    digests = {TRAINED: write_examples(weighing.examples(Folder(config.input)), folder, TRAINED)}
    manifest = weighing.manifest(identity, config.epochs)
    if manifest.rows_in != rows:
        raise UserError(
            f"input: its manifest counts {rows} rows, its files hold {manifest.rows_in}: they were changed."
        )
    if config.held_out:
        held_out = Weighing(config.policy, weighing.max_length).examples(Folder(config.held_out))
        digests[HELD_OUT] = write_examples(held_out, folder, HELD_OUT)
    if weighing.rejects:
        (output / REJECTED).write_table("part-000000.parquet", rejects_table("train", weighing.rejects))
    folder.write_text(_SURVEY, Survey(manifest=manifest, digests=digests).model_dump_json(indent=2))
    return manifest


def _standing(folder: Folder) -> Survey | None:
    """The survey that a folder of examples holds; None where there is none, or a file of it is damaged."""
    if not folder.has(_SURVEY):
        return None
    try:
        record = Survey.model_validate_json(folder.read_text(_SURVEY))
    except ValidationError:
        return None
    whole = all(folder.has(name) and _digest(folder, name) == digest for name, digest in record.digests.items())
    return record if whole else None


def _digest(folder: Folder, name: str) -> str:
    with folder.open(name) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]


@dataclass
class Weighing:
    """A policy at work on a table: examples one after another, counts of what it saw, rows that it could not use."""

    policy: Policy
    max_length: int
    counts: Counter[str] = field(default_factory=lambda: Counter(dict.fromkeys(_COUNTED, 0)))
    rejects: list[tuple[Mapping[str, Any], str]] = field(default_factory=list)
    tokens: int = 0
    """Tokens of the examples, prompts included."""

    def manifest(self, identity: Identity, epochs: int) -> Manifest:
        """The record of what was weighed so far, as a training's that has taken no step."""
        without_weight = self.counts["rows_without_weight"]
        reason = f"policy '{self.policy.name}' gives no weight to any token"
        return Manifest(
            identity=identity,
            rows_in=self.counts["rows"],
            rows_out=self.counts["examples"],
            rows_set_aside=without_weight,
            set_aside_reasons={reason: without_weight} if without_weight else {},
            rows_rejected=len(self.rejects),
            reject_reasons=dict(Counter(reason for _, reason in self.rejects)),
            tokens=self.tokens * epochs,
            seconds=0,
            counts=dict(self.counts),
        )

    def examples(self, source: Folder) -> Iterator[Example]:
        """The rows that have any weight, in the order of the table.

        Raises:
            UserError: the table's facts are not usable, or the policy gives no weight to any row.
        """
        for row in read_facts(source, _COLUMNS):
            self.counts["rows"] += 1
            if example := self._example(row):
                self.tokens += len(example.input_ids)
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
                "trained_tokens": example.n,
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
