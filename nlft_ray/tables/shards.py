"""Units of work: a shard is a range of input rows that becomes one output file.

A shard is done when its file stands, whole, in the output's `data` folder. The file's name follows from the shard's
number, so work that is repeated after a crash replaces itself: no row is lost, none is there twice.
"""

import errno
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import pyarrow as pa

from nlft_ray.errors import UserError
from nlft_ray.storage.folder import Folder, side_by_side
from nlft_ray.tables.audit import check_shard, digest, digests_of_ids
from nlft_ray.tables.schema import REJECTS

DATA, REJECTED = "data", "rejects"
UNFINISHED = "unfinished"
"""Folder of what a worker keeps of shards that are not done yet; it goes when the table is whole."""
_SHARDS_AIMED_AT, _MIN_ROWS, _MAX_ROWS = 64, 16, 4096
_FOOTER_KEY = b"nlft_ray"


@dataclass(frozen=True)
class Shard:
    """Rows `start` to `stop` of one Parquet file of the input."""

    number: int
    file: str
    start: int
    stop: int
    plan: str = ""
    """Fingerprint of what is being made. A file made for another plan does not count as done."""

    @property
    def name(self) -> str:
        return f"part-{self.number:06d}.parquet"


@dataclass
class Worked:
    """What a worker made of a table: output rows, unusable rows with reasons, and what it counted.

    A reason reads `kind` or `kind: details`; rejects are counted by kind.
    Rows that are `set_aside` are usable but left out on purpose. They stand among the rejects, and are counted apart.
    """

    table: pa.Table
    rejects: list[tuple[Mapping[str, Any], str]] = field(default_factory=list)
    tokens: int = 0
    counts: dict[str, float] = field(default_factory=dict)
    set_aside: list[tuple[Mapping[str, Any], str]] = field(default_factory=list)

    def __add__(self, other: "Worked") -> "Worked":
        return Worked(
            pa.concat_tables([self.table, other.table]),
            self.rejects + other.rejects,
            self.tokens + other.tokens,
            dict(Counter(self.counts) + Counter(other.counts)),
            self.set_aside + other.set_aside,
        )


@dataclass(frozen=True)
class ShardReport:
    """The record of a finished shard; it also stands in the footer of the shard's file."""

    number: int
    rows_in: int
    rows_out: int
    reject_reasons: dict[str, int]
    tokens: int
    seconds: float
    counts: dict[str, float]
    set_aside_reasons: dict[str, int]
    plan: str
    ids: str
    """Digest of the ids that were read."""


class Worker(Protocol):
    """Does a stage's work on a table in this process. `seed` is the shard's own."""

    schema: pa.Schema

    def __call__(self, table: pa.Table, seed: int) -> Worked: ...


MakesWorker = Callable[[Any], Worker]
"""Makes a worker of a stage's configuration, in an actor. A function, since what it imports weighs seconds."""


def plan_shards(source: Folder, rows_per_shard: int | None, plan: str = "") -> list[Shard]:
    """Cut every file of a table into ranges. The cut depends on the table alone, not on how many workers there are.

    Raises:
        UserError: a file of the table cannot be read.
    """
    data = source / DATA
    names = data.files(".parquet")
    rows = dict(zip(names, side_by_side(lambda name: _rows_of(data, name), names), strict=True))
    if rows_per_shard is None:
        even = -(-sum(rows.values()) // _SHARDS_AIMED_AT)
        rows_per_shard = min(max(even, _MIN_ROWS), _MAX_ROWS)
    shards: list[Shard] = []
    for file, count in rows.items():
        for start in range(0, count, rows_per_shard):
            shards.append(Shard(len(shards), file, start, min(start + rows_per_shard, count), plan))
    return shards


def _rows_of(data: Folder, name: str) -> int:
    try:
        return data.open_parquet(name).metadata.num_rows
    except pa.ArrowInvalid as error:
        raise UserError(f"input: {data / name} is no whole Parquet file ({error}). Make the table again.") from error


def read_shard(source: Folder, shard: Shard, columns: list[str] | None = None) -> pa.Table:
    """The shard's rows, read from the row groups that hold them; all columns, or those named."""
    file = (source / DATA).open_parquet(shard.file)
    groups, offset, skipped = [], 0, None
    for group in range(file.num_row_groups):
        rows = file.metadata.row_group(group).num_rows
        if offset < shard.stop and offset + rows > shard.start:
            groups.append(group)
            skipped = offset if skipped is None else skipped
        offset += rows
    return file.read_row_groups(groups, columns=columns).slice(shard.start - (skipped or 0), shard.stop - shard.start)


def read_rows(source: Folder, batch_size: int = 1024) -> Iterator[dict[str, Any]]:
    """Every row of a table, one at a time, in order."""
    data = source / DATA
    for name in data.files(".parquet"):
        for batch in data.open_parquet(name).iter_batches(batch_size=batch_size):
            yield from batch.to_pylist()


def input_ids(source: Folder, shards: Sequence[Shard]) -> dict[int, str]:
    """Digest of the ids of each shard, by its number.

    Raises:
        UserError: an id stands in more than one row.
    """
    return digests_of_ids(
        lambda: side_by_side(lambda shard: (shard.number, _ids(read_shard(source, shard, ["id"]))), shards)
    )


def work_shard(
    worker: Worker, source: Folder, output: Folder, shard: Shard, stage: str, seed: int, draws: int = 1
) -> ShardReport:
    """Read a shard, have it worked on, and commit what came out. Rejects are committed first: data means done.

    `draws` is how many rows the worker makes of one.

    Raises:
        UserError: as the worker raises it; an id was lost or doubled; or the output cannot be written.
    """
    began = time.monotonic()
    table = read_shard(source, shard)
    worked = _isolating(worker, table, hash_seed(seed, shard.number))
    left_out = worked.rejects + worked.set_aside
    ids = _ids(table)
    rejects = rejects_table(stage, left_out)
    check_shard(f"{stage}, {shard.name}", ids, _ids(worked.table) + _ids(rejects), draws)
    report = ShardReport(
        number=shard.number,
        rows_in=table.num_rows,
        rows_out=worked.table.num_rows,
        reject_reasons=dict(Counter(reason.partition(":")[0] for _, reason in worked.rejects)),
        tokens=worked.tokens,
        seconds=time.monotonic() - began,
        counts=worked.counts,
        set_aside_reasons=dict(Counter(reason.partition(":")[0] for _, reason in worked.set_aside)),
        plan=shard.plan,
        ids=digest(ids),
    )
    if left_out:
        (output / REJECTED).write_table(shard.name, rejects)
    else:
        (output / REJECTED).delete(shard.name)  # of an earlier try, which may have fared worse
    (output / DATA).write_table(shard.name, worked.table, {_FOOTER_KEY.decode(): json.dumps(asdict(report))})
    return report


def _ids(table: pa.Table) -> list[str]:
    return [id or "" for id in table["id"].to_pylist()]


def _isolating(worker: Worker, table: pa.Table, seed: int) -> Worked:
    """Work on a table; where that raises, halve it until the rows that raise are found and rejected."""
    try:
        return worker(table, seed)
    except UserError:
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(f"the disk is full: {error}. Free space, and run the same command again.") from error
        return _halved(worker, table, seed, error)
    except Exception as error:  # a row that makes the model raise must not cost its neighbours
        return _halved(worker, table, seed, error)


def _halved(worker: Worker, table: pa.Table, seed: int, error: Exception) -> Worked:
    if table.num_rows > 1:
        middle = table.num_rows // 2
        return _isolating(worker, table.slice(0, middle), seed) + _isolating(worker, table.slice(middle), seed)
    reason = f"raised {type(error).__name__}: {' '.join(str(error).split())}"
    return Worked(worker.schema.empty_table(), [(table.to_pylist()[0], reason[:200])])


def rejects_table(stage: str, rejects: list[tuple[Mapping[str, Any], str]]) -> pa.Table:
    rows = [
        {
            "id": str(row.get("id") or ""),
            "stage": stage,
            "reason": reason,
            "row": json.dumps(row, ensure_ascii=False, default=str),
        }
        for row, reason in rejects
    ]
    return pa.Table.from_pylist(rows, schema=REJECTS)


def finished_shard(output: Folder, shard: Shard) -> ShardReport | None:
    """The record of a shard that is done; None where a file of it is missing, cut short or not of this plan."""
    try:
        metadata = _metadata(output / DATA, shard.name)
        report = ShardReport(**json.loads(metadata.metadata[_FOOTER_KEY])) if metadata else None
        rejected = _metadata(output / REJECTED, shard.name)
    except (pa.ArrowInvalid, OSError, KeyError, TypeError, ValueError):
        return None
    if report is None:
        return None
    left_out = sum(report.reject_reasons.values()) + sum(report.set_aside_reasons.values())
    whole = (
        (report.number, report.plan) == (shard.number, shard.plan)
        and report.rows_in == shard.stop - shard.start
        and report.rows_out == metadata.num_rows
        and left_out == (rejected.num_rows if rejected else 0)
    )
    return report if whole else None


def finished_shards(output: Folder, shards: Sequence[Shard]) -> dict[int, ShardReport]:
    """The records of all shards that are done, by their numbers."""
    reports = side_by_side(lambda shard: finished_shard(output, shard), shards)
    return {report.number: report for report in reports if report}


def _metadata(folder: Folder, name: str) -> Any:
    return folder.open_parquet(name).metadata if folder.has(name) else None


def remove_strays(output: Folder, shards: Sequence[Shard]) -> int:
    """Delete what no shard of the plan accounts for: files of an earlier plan, and half a file of a killed process."""
    planned = {shard.name for shard in shards}
    strays = 0
    for name in (DATA, REJECTED):
        folder = output / name
        folder.remove_unfinished()
        for stray in set(folder.files(".parquet")) - planned:
            folder.delete(stray)
            strays += 1
    output.remove_unfinished()
    return strays


def hash_seed(seed: int, number: int) -> int:
    """A shard's own seed, the same wherever and whenever it is worked on."""
    return (seed * 1_000_003 + number) % (2**63)
