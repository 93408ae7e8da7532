"""The course of every stage that turns one table into another, row by row: sample, judge, score, evaluate."""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from nlft_ray.config import WithPool
from nlft_ray.errors import UserError
from nlft_ray.execution import process
from nlft_ray.execution.inline import InlineExecutor
from nlft_ray.execution.work import RAISED, TableWork, WorkerFactory
from nlft_ray.log import RowProgress, log
from nlft_ray.models.automatic import IDS_MADE_ANEW, least_rows, settings_of_stage, with_one_commit
from nlft_ray.models.engines.chat import FAILED, SILENT
from nlft_ray.models.prompts import prompts_fingerprint, prompts_of_a_server
from nlft_ray.storage.folder import Folder
from nlft_ray.tables.manifest import (
    MANIFEST,
    Identity,
    Manifest,
    StageResult,
    begin,
    begun_model,
    check_rejects,
    check_tokenizer,
    finish,
    identity_of,
    input_fingerprint,
    read_manifest,
    settle_model,
    settle_shards,
    with_settled_model,
)
from nlft_ray.tables.shards import (
    DATA,
    UNFINISHED,
    Shard,
    ShardReport,
    finished_shards,
    input_ids,
    plan_shards,
    remove_strays,
)

if TYPE_CHECKING:
    from nlft_ray.models.turns import Turns

T = TypeVar("T")


class Executor(Protocol):
    """Where shards are worked on: Ray's actors, or this process."""

    def connect_during(self, work: Callable[[], T]) -> T: ...

    def has_gpus(self, work: TableWork) -> bool: ...

    def map_shards(self, work: TableWork, shards: Sequence[Shard]) -> Iterator[ShardReport]: ...


def run_table_stage(
    config: Any,
    *,
    stage: str,
    reads: str | tuple[str, ...],
    writes: str,
    make_worker: WorkerFactory,
    seed: int = 0,
    rows_per_input: int = 1,
    loads_model: bool = True,
    renders_prompts: bool | None = None,
    summarise: Callable[[Manifest], dict[str, float]] | None = None,
) -> StageResult:
    """Do what is not done yet, then write the manifest. Killed at any moment and started again, it continues.

    `seed`, `rows_per_input` and `loads_model` describe the work (see `TableWork`). What loads the model also
    `renders_prompts` with its tokenizer, unless told otherwise. `summarise` adds to the manifest's counts what only
    the whole table shows.

    Raises:
        UserError: the input does not fit, the output belongs to something else, or too many rows were unusable.
    """
    source, output = Folder(config.input), Folder(config.output)
    input_manifest = read_manifest(source, table=reads)
    renders_prompts = loads_model if renders_prompts is None else renders_prompts
    config = with_one_commit(config, begun_model(output)) if renders_prompts else config
    work = TableWork(stage, make_worker, config, source, output, seed, rows_per_input, loads_model)
    executor = _executor(config)
    identify = partial(_identity, work, writes, input_manifest, renders_prompts)
    begun = output.has(MANIFEST)  # otherwise there is work, and Ray can start while transformers is imported
    identity, turns = identify() if begun else executor.connect_during(identify)
    automatic = settings_of_stage(config, partial(executor.has_gpus, work), turns)
    identity = settle_model(output, identity, overwrite=config.overwrite, automatic=automatic)
    settled = with_settled_model(turns.settled(config) if turns else config, identity, automatic)
    work = replace(work, config=settled)
    identity = settle_shards(output, identity, source, least_rows(settled, rows_per_input))
    complete = begin(output, identity, overwrite=config.overwrite)
    shards = plan_shards(source, identity.config["rows_per_shard"], identity.fingerprint())
    reports = finished_shards(output, shards)
    _forget_failures(stage, output, shards, reports)
    if complete is not None and len(reports) == len(shards):
        return StageResult(output=config.output, manifest=complete, reused=True)
    _reopen(output, shards)
    ids = input_ids(source, shards)
    _forget_changed(output, shards, reports, ids)
    began = time.monotonic()
    notes = _said_notes(stage, identity, turns)
    _do_missing(work, executor, shards, reports)
    manifest = manifest_of(identity, list(reports.values()), time.monotonic() - began, notes)
    audit_shards(shards, reports, ids, input_manifest)
    check_rejects(config, stage, manifest, output)
    if summarise:
        manifest = manifest.model_copy(update={"counts": manifest.counts | summarise(manifest)})
    _finish(output, shards, manifest)
    return StageResult(output=config.output, manifest=manifest)


def _said_notes(stage: str, identity: Identity, turns: "Turns | None") -> dict[str, str]:
    """What was found about the model's turns, for the manifest; it is said here."""
    notes = turns.notes(identity.config["prompts"]) if turns else {}
    if turns and (identity.config.get("server") or {}).get("prompts") == "text":
        notes["token_ids"] = IDS_MADE_ANEW
    for subject, note in notes.items():
        log(f"{stage}: {subject.replace('_', ' ')}: {note}")
    return notes


def _executor(config: WithPool) -> Executor:
    if config.pool.backend == "inline":
        return InlineExecutor()
    from nlft_ray.execution.ray_actors import RayExecutor  # inline work needs no Ray

    return RayExecutor(config.ray_address)


def _identity(
    work: TableWork, writes: str, input_manifest: Manifest, renders_prompts: bool
) -> tuple[Identity, "Turns | None"]:
    """The identity but for what `settle_model` chooses; and how the model takes turns, where there is one."""
    config: Any = work.config
    turns = None
    made_by = input_manifest.identity
    fields: dict[str, Any] = {"table": writes, "input": input_fingerprint(input_manifest)}
    if renders_prompts:
        with process.starting():
            from nlft_ray.models.loading import load_tokenizer, model_fingerprint, tokenizer_fingerprint
            from nlft_ray.models.turns import read_turns

        tokenizer = load_tokenizer(config.model)
        turns = read_turns(tokenizer, config.model, config.prompts)
        config = turns.identified(config)
        fields |= {
            "model": model_fingerprint(config.model) if work.loads_model else None,
            "tokenizer": tokenizer_fingerprint(tokenizer),
            "prompts": prompts_fingerprint(tokenizer, config.prompts),
        }
        advice = f"Set model.path, now {config.model.path}, to the model that made it, or start from questions."
        check_tokenizer("input", config.input, made_by.tokenizer, fields["tokenizer"], advice)
    else:
        fields["tokenizer"] = made_by.tokenizer
        config = config.model_copy(update={"prompts": prompts_of_a_server(config.prompts)})
    identity = identity_of(config, work.stage, **fields)
    identity.config["rows_per_shard"] = config.pool.rows_per_shard  # it shapes batches, hence seeds
    return identity, turns


def _do_missing(work: TableWork, executor: Executor, shards: list[Shard], reports: dict[int, ShardReport]) -> None:
    """Fill `reports` with every shard that is missing."""
    missing = [shard for shard in shards if shard.number not in reports]
    if not missing:
        return
    total = sum(shard.stop - shard.start for shard in shards)
    before = sum(report.rows_in for report in reports.values())
    with RowProgress(work.stage, total, before) as progress:
        for report in executor.map_shards(work, missing):
            reports[report.number] = report
            progress.advance(report.rows_in, report.tokens)


def _reopen(output: Folder, shards: list[Shard]) -> None:
    """Delete the manifest of an output that is not whole, and the files that are no part of its plan."""
    if output.has(MANIFEST):
        log(f"{output}: files are missing or damaged; they are made again.")
        output.delete(MANIFEST)
    strays = remove_strays(output, shards)
    if strays:
        log(f"{output}: removed {strays} files of an earlier plan.")


def _forget_changed(output: Folder, shards: list[Shard], reports: dict[int, ShardReport], ids: dict[int, str]) -> None:
    """Drop the reports and the files of shards whose input rows have changed since they were made."""
    for shard in shards:
        if shard.number in reports and reports[shard.number].ids != ids[shard.number]:
            log(f"input: {shard.file} was changed since {shard.name} was made of it; it is made again.")
            (output / DATA).delete(shard.name)
            del reports[shard.number]


def _forget_failures(stage: str, output: Folder, shards: list[Shard], reports: dict[int, ShardReport]) -> None:
    """Drop the shards with rows that made the worker raise, or that a server left unanswered: perhaps no fault of
    theirs."""
    failed = 0
    for shard in shards:
        reasons = reports[shard.number].reject_reasons if shard.number in reports else {}
        if count := sum(rows for reason, rows in reasons.items() if reason.startswith((RAISED, FAILED, SILENT))):
            failed += count
            (output / DATA).delete(shard.name)
            del reports[shard.number]
    if failed:
        log(f"{stage}: {failed} rows are tried again, which made the worker raise or were not answered.")


def _finish(output: Folder, shards: list[Shard], manifest: Manifest) -> None:
    """Leave nothing but whole shards in the output, and say that it is complete."""
    remove_strays(output, shards)
    (output / UNFINISHED).remove()
    finish(output, manifest)


def audit_shards(
    shards: list[Shard], reports: dict[int, ShardReport], ids: dict[int, str], input_manifest: Manifest
) -> None:
    """Check that every input id is in the output or among the rejects exactly once.

    Each shard was checked where it was worked on. What is left is that all shards were made of the input as it is.

    Raises:
        UserError: the input was changed meanwhile, or does not hold what its manifest says.
    """
    changed = [shard.file for shard in shards if reports[shard.number].ids != ids[shard.number]]
    if changed:
        raise UserError(
            f"input: {changed[0]} was changed while its rows were worked on. Run the same command again when it rests."
        )
    read = sum(reports[shard.number].rows_in for shard in shards)
    if read != input_manifest.rows_out:
        raise UserError(
            f"input: its manifest counts {input_manifest.rows_out} rows, its files hold {read}: they were changed."
        )


def manifest_of(identity: Identity, reports: list[ShardReport], seconds: float, notes: dict[str, str]) -> Manifest:
    """The manifest of a complete output: the sum of its shards' reports."""
    reasons: Counter[str] = Counter()
    set_aside: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    for report in reports:
        reasons.update(report.reject_reasons)
        set_aside.update(report.set_aside_reasons)
        counts.update(report.counts)
    return Manifest(
        identity=identity,
        rows_in=sum(report.rows_in for report in reports),
        rows_out=sum(report.rows_out for report in reports),
        rows_rejected=sum(reasons.values()),
        reject_reasons=dict(reasons),
        rows_set_aside=sum(set_aside.values()),
        set_aside_reasons=dict(set_aside),
        tokens=sum(report.tokens for report in reports),
        seconds=seconds,
        counts=dict(counts),
        notes=notes,
    )
