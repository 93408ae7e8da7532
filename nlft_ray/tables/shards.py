"""Shards, the units of work: ranges of input rows, each of which becomes one output file.

A shard is done when its file stands, whole, in the output's `data` folder. The file's name follows from the shard's
number, so work that is repeated after a crash replaces itself: no row is lost, none is there twice.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from nlft_ray.errors import UserError
from nlft_ray.storage.folder import Folder, map_concurrently
from nlft_ray.tables.audit import digests_of_ids
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


def plan_shards(source: Folder, rows_per_shard: int | None, plan: str = "") -> list[Shard]:
    """Cut every file of a table into ranges. The cut depends on the table alone, not on how many workers there are.

    Raises:
        UserError: a file of the table cannot be read.
    """
    rows = _rows_by_file(source)
    if rows_per_shard is None:
        rows_per_shard = _usual_rows(rows)
    shards: list[Shard] = []
    for file, count in rows.items():
        for start in range(0, count, rows_per_shard):
            shards.append(Shard(len(shards), file, start, min(start + rows_per_shard, count), plan))
    return shards


def usual_rows_per_shard(source: Folder) -> int:
    """Rows of a shard where no setting says otherwise: many shards, for many workers, but none too small or large.

    Raises:
        UserError: a file of the table cannot be read.
    """
    return _usual_rows(_rows_by_file(source))


def _usual_rows(rows_by_file: Mapping[str, int]) -> int:
    even = -(-sum(rows_by_file.values()) // _SHARDS_AIMED_AT)
    return min(max(even, _MIN_ROWS), _MAX_ROWS)


def _rows_by_file(source: Folder) -> dict[str, int]:
    data = source / DATA
    names = data.files(".parquet")
    return dict(zip(names, map_concurrently(lambda name: _rows_of(data, name), names), strict=True))


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
        lambda: map_concurrently(lambda shard: (shard.number, ids_of(read_shard(source, shard, ["id"]))), shards)
    )


def ids_of(table: pa.Table) -> list[str]:
    """The ids of a table's rows, in order; empty where a row has none."""
    return [id or "" for id in table["id"].to_pylist()]


def commit_shard(output: Folder, shard: Shard, report: ShardReport, table: pa.Table, rejects: pa.Table) -> None:
    """Write what came out of a shard. Rejects come first: a file of data means that the shard is done."""
    if rejects.num_rows:
        (output / REJECTED).write_table(shard.name, rejects)
    else:
        (output / REJECTED).delete(shard.name)  # of an earlier try, which may have fared worse
    (output / DATA).write_table(shard.name, table, {_FOOTER_KEY.decode(): json.dumps(asdict(report))})


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
    reports = map_concurrently(lambda shard: finished_shard(output, shard), shards)
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
