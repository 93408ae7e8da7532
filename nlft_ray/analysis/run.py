"""A run folder, read: stages, trainings, evaluations. A scored folder alone is a run of one stage."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from nlft_ray.errors import UserError
from nlft_ray.storage.folder import Folder
from nlft_ray.tables.manifest import MANIFEST, Manifest, input_fingerprint, read_manifest
from nlft_ray.tables.shards import read_rows
from nlft_ray.tables.training import read_metrics

_BEFORE = "before"


@dataclass(frozen=True)
class StageRecord:
    """One stage's folder, and its manifest."""

    name: str
    """Path of the folder within the run."""
    folder: Folder
    manifest: Manifest

    @property
    def leaf(self) -> str:
        """Last name of the path: the policy's, for what belongs to one."""
        return self.name.rpartition("/")[2]


@dataclass(frozen=True)
class Change:
    """A test question whose answers before and after training are worth a look."""

    question: str
    before: str
    after: str


@dataclass(frozen=True)
class Changes:
    """Test questions before and after training under one policy."""

    policy: str
    kinds: dict[str, list[Change]]
    """`fixed`, `broken` and `still wrong`, in the order of the table."""
    unchanged: int
    """Questions answered right before and after."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """Stages, metrics and changed answers of a run: all that is shown of it beside its tokens."""

    name: str
    stages: list[StageRecord]
    metrics: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """Policy → a line for each optimizer step."""
    changes: list[Changes] = field(default_factory=list)

    def of_stage(self, stage: str) -> list[StageRecord]:
        return [record for record in self.stages if record.manifest.identity.stage == stage]

    def origin(self, record: StageRecord) -> StageRecord | None:
        """The stage whose table this one read; None where it is not in the run."""
        source = record.manifest.identity.input
        return next((stage for stage in self.stages if input_fingerprint(stage.manifest) == source), None)


@dataclass(frozen=True, kw_only=True)
class ScoredRun(Run):
    """A run with a scored table."""

    scored: StageRecord

    def examples(self) -> Folder | None:
        """The table that was scored: the folder whose fingerprint the scored one names."""
        source = self.scored.manifest.identity.input
        for record in [*self.stages, *_records(self.scored.folder.parent)]:
            if record.manifest.identity.table == "examples" and input_fingerprint(record.manifest) == source:
                return record.folder
        return None


def read_run(folder: Folder, order: Sequence[str]) -> ScoredRun:
    """Read a run folder, or a scored folder.

    Args:
        folder: the folder of a run, or of a scored table.
        order: names of stages; the outputs of these are read, and stand in this order.

    Raises:
        UserError: there is no finished scored table.
    """
    name = folder.path.rpartition("/")[2]
    if folder.has(MANIFEST):
        scored = StageRecord(name, folder, read_manifest(folder, table="scored"))
        return ScoredRun(name=name, scored=scored, stages=[scored])
    records = [record for record in _records(folder) if record.manifest.identity.stage in order]
    records.sort(key=lambda record: (order.index(record.manifest.identity.stage), record.leaf != _BEFORE, record.name))
    scored_records = [record for record in records if record.manifest.identity.table == "scored"]
    if len(scored_records) != 1:
        what = "none" if not scored_records else ", ".join(record.name for record in scored_records)
        raise UserError(
            f"input: {folder} must be a scored folder, or a run with one in it; finished scored folders found: {what}."
        )
    return ScoredRun(
        name=name,
        scored=scored_records[0],
        stages=records,
        metrics={
            record.leaf: lines
            for record in records
            if record.manifest.identity.stage == "train" and (lines := read_metrics(record.folder))
        },
        changes=list(_changes(records)),
    )


def _records(folder: Folder) -> Iterator[StageRecord]:
    """Finished stages in the folders of a folder, and one level below."""
    for path in folder.folders():
        if path.has(MANIFEST):
            yield from _record(folder, path)
        else:
            for inner in path.folders():
                yield from _record(folder, inner)


def _record(run: Folder, folder: Folder) -> Iterator[StageRecord]:
    if folder.has(MANIFEST):
        manifest = Manifest.model_validate_json(folder.read_text(MANIFEST))
        yield StageRecord(folder.path.removeprefix(f"{run.path}/"), folder, manifest)


def read_training(folder: Folder) -> Run:
    """A training's folder as a run of one stage.

    Raises:
        UserError: there is no finished training.
    """
    record = StageRecord(folder.path.rpartition("/")[2], folder, read_manifest(folder, table="weights"))
    lines = read_metrics(folder)
    return Run(name=record.name, stages=[record], metrics={record.leaf: lines} if lines else {})


def _changes(records: list[StageRecord]) -> Iterator[Changes]:
    evaluations = {record.leaf: record for record in records if record.manifest.identity.stage == "evaluate"}
    before = evaluations.pop(_BEFORE, None)
    if before is None:
        return
    earlier = {row["id"]: row for row in read_rows(before.folder)}
    for policy, record in evaluations.items():
        kinds: dict[str, list[Change]] = {"fixed": [], "broken": [], "still wrong": []}
        unchanged = 0
        for row in read_rows(record.folder):
            old = earlier.get(row["id"])
            if old is None:
                continue
            if old["correct"] and row["correct"]:
                unchanged += 1
                continue
            kind = "fixed" if row["correct"] else "broken" if old["correct"] else "still wrong"
            kinds[kind].append(Change(row["question"], old["completion"], row["completion"]))
        yield Changes(policy, kinds, unchanged)
