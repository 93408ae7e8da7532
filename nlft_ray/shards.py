"""Units of work: a shard is a range of input rows that becomes one output file.

A shard is done when its file stands, whole, in the output's `data` folder. The file's name follows from the shard's
number, so work that is repeated after a crash replaces itself: no row is lost, none is there twice.
"""

import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import pyarrow as pa

from nlft_ray.errors import UserError
from nlft_ray.schema import REJECTS
from nlft_ray.storage import Folder

DATA, REJECTED = "data", "rejects"
_SHARDS_AIMED_AT, _MIN_ROWS, _MAX_ROWS = 64, 16, 4096
_FOOTER_KEY = b"nlft_ray"


@dataclass(frozen=True)
class Shard:
    """Rows `start` to `stop` of one Parquet file of the input."""

    number: int
    file: str
    start: int
    stop: int

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


class Worker(Protocol):
    """Does a stage's work on a table in this process. `seed` is the shard's own."""

    schema: pa.Schema

    def __call__(self, table: pa.Table, seed: int) -> Worked: ...


def plan_shards(source: Folder, rows_per_shard: int | None) -> list[Shard]:
    """Cut every file of a table into ranges. The cut depends on the table alone, not on how many workers there are."""
    data = source / DATA
    rows = {name: data.open_parquet(name).metadata.num_rows for name in data.files(".parquet")}
    if rows_per_shard is None:
        even = -(-sum(rows.values()) // _SHARDS_AIMED_AT)
        rows_per_shard = min(max(even, _MIN_ROWS), _MAX_ROWS)
    shards: list[Shard] = []
    for file, count in rows.items():
        for start in range(0, count, rows_per_shard):
            shards.append(Shard(len(shards), file, start, min(start + rows_per_shard, count)))
    return shards


def read_shard(source: Folder, shard: Shard) -> pa.Table:
    """The shard's rows, read from the row groups that hold them."""
    file = (source / DATA).open_parquet(shard.file)
    groups, offset, skipped = [], 0, None
    for group in range(file.num_row_groups):
        rows = file.metadata.row_group(group).num_rows
        if offset < shard.stop and offset + rows > shard.start:
            groups.append(group)
            skipped = offset if skipped is None else skipped
        offset += rows
    return file.read_row_groups(groups).slice(shard.start - (skipped or 0), shard.stop - shard.start)


def read_rows(source: Folder, batch_size: int = 1024) -> Iterator[dict[str, Any]]:
    """Every row of a table, one at a time, in order."""
    data = source / DATA
    for name in data.files(".parquet"):
        for batch in data.open_parquet(name).iter_batches(batch_size=batch_size):
            yield from batch.to_pylist()


def work_shard(worker: Worker, source: Folder, output: Folder, shard: Shard, stage: str, seed: int) -> ShardReport:
    """Read a shard, have it worked on, and commit what came out. Rejects are committed first: data means done."""
    began = time.monotonic()
    table = read_shard(source, shard)
    worked = _isolating(worker, table, hash_seed(seed, shard.number))
    report = ShardReport(
        number=shard.number,
        rows_in=table.num_rows,
        rows_out=worked.table.num_rows,
        reject_reasons=dict(Counter(reason.partition(":")[0] for _, reason in worked.rejects)),
        tokens=worked.tokens,
        seconds=time.monotonic() - began,
        counts=worked.counts,
        set_aside_reasons=dict(Counter(reason.partition(":")[0] for _, reason in worked.set_aside)),
    )
    left_out = worked.rejects + worked.set_aside
    if left_out:
        (output / REJECTED).write_table(shard.name, rejects_table(stage, left_out))
    (output / DATA).write_table(shard.name, worked.table, {_FOOTER_KEY.decode(): json.dumps(asdict(report))})
    return report


def _isolating(worker: Worker, table: pa.Table, seed: int) -> Worked:
    """Work on a table; where that raises, halve it until the rows that raise are found and rejected."""
    try:
        return worker(table, seed)
    except UserError:
        raise
    except Exception as error:  # a row that makes the model raise must not cost its neighbours
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
    """The record of a shard that is done; None where its file is missing, cut short or not ours."""
    data = output / DATA
    if not data.has(shard.name):
        return None
    try:
        metadata = data.open_parquet(shard.name).metadata
        report = ShardReport(**json.loads(metadata.metadata[_FOOTER_KEY]))
    except (pa.ArrowInvalid, OSError, KeyError, TypeError, ValueError):
        return None
    whole = report.rows_in == shard.stop - shard.start and report.rows_out == metadata.num_rows
    return report if whole else None


def hash_seed(seed: int, number: int) -> int:
    """A shard's own seed, the same wherever and whenever it is worked on."""
    return (seed * 1_000_003 + number) % (2**63)
