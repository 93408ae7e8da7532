"""Work on one shard, wherever it runs: a worker makes output rows and rejects of it, which are committed."""

import errno
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import pyarrow as pa

from nlft_ray.config import WithPool
from nlft_ray.errors import UserError
from nlft_ray.storage.folder import Folder
from nlft_ray.tables.audit import check_shard, digest
from nlft_ray.tables.shards import Shard, ShardReport, commit_shard, ids_of, read_shard, rejects_table


@dataclass
class WorkResult:
    """The outcome of a worker's table: output rows, unusable rows with reasons, and what it counted.

    A reason reads `kind` or `kind: details`; rejects are counted by kind.
    Rows that are `set_aside` are usable but left out on purpose. They stand among the rejects, and are counted apart.
    """

    table: pa.Table
    rejects: list[tuple[Mapping[str, Any], str]] = field(default_factory=list)
    tokens: int = 0
    counts: dict[str, float] = field(default_factory=dict)
    set_aside: list[tuple[Mapping[str, Any], str]] = field(default_factory=list)

    def __add__(self, other: "WorkResult") -> "WorkResult":
        return WorkResult(
            pa.concat_tables([self.table, other.table]),
            self.rejects + other.rejects,
            self.tokens + other.tokens,
            dict(Counter(self.counts) + Counter(other.counts)),
            self.set_aside + other.set_aside,
        )


class Worker(Protocol):
    """A stage's work on a table, in this process. `seed` is the shard's own."""

    schema: pa.Schema

    def __call__(self, table: pa.Table, seed: int) -> WorkResult: ...


WorkerFactory = Callable[[Any], Worker]
"""Makes a worker of a stage's configuration. A function, since what a worker imports takes seconds."""


@dataclass(frozen=True)
class TableWork:
    """The work of one stage on every shard of a table; it travels to wherever that is done."""

    stage: str
    make_worker: WorkerFactory
    config: WithPool
    source: Folder
    output: Folder
    seed: int = 0
    """Seed of the stage, of which each shard's own is made."""
    rows_per_input: int = 1
    """Rows that the worker makes of one."""
    loads_model: bool = True
    """Whether the worker holds the target model; else it is given no GPU unless the configuration asks for one."""
    start: str = field(default_factory=lambda: uuid.uuid4().hex[:8])
    """A name of this start of the command, which no other has."""

    @property
    def processes(self) -> int:
        """Processes of one worker, of which each needs the CPUs and GPUs that the pool names."""
        return self.config.pool.tensor_parallel if self.loads_model else 1

    def on(self, worker: Worker, shard: Shard) -> ShardReport:
        """Read a shard, have `worker` work on it, and commit what came out.

        Raises:
            UserError: as the worker raises it; an id was lost or doubled; memory or disk is full; or the output cannot
                be written.
            DeviceFailed: the device did.
        """
        began = time.monotonic()
        table = read_shard(self.source, shard)
        result = isolate_failures(worker, table, shard_seed(self.seed, shard.number))
        ids, rejects = ids_of(table), rejects_table(self.stage, result.rejects + result.set_aside)
        check_shard(f"{self.stage}, {shard.name}", ids, ids_of(result.table) + ids_of(rejects), self.rows_per_input)
        report = ShardReport(
            number=shard.number,
            rows_in=table.num_rows,
            rows_out=result.table.num_rows,
            reject_reasons=_count_kinds(result.rejects),
            tokens=result.tokens,
            seconds=time.monotonic() - began,
            counts=result.counts,
            set_aside_reasons=_count_kinds(result.set_aside),
            plan=shard.plan,
            ids=digest(ids),
        )
        commit_shard(self.output, shard, report, result.table, rejects)
        return report


def shard_seed(seed: int, number: int) -> int:
    """A shard's own seed, the same wherever and whenever it is worked on."""
    return (seed * 1_000_003 + number) % (2**63)


def _count_kinds(rejects: list[tuple[Mapping[str, Any], str]]) -> dict[str, int]:
    return dict(Counter(reason.partition(":")[0] for _, reason in rejects))


RAISED = "raised "
"""How the reason of a reject begins whose row made the worker raise."""


class DeviceFailed(Exception):
    """The device of this process failed, and may go on failing whatever it is asked: the process must end. So it must
    where one of several that share a model did."""


def isolate_failures(worker: Worker, table: pa.Table, seed: int) -> WorkResult:
    """Work on a table; where that raises, halve it until the rows that raise are known, and reject those.

    Raises:
        UserError: as the worker raises it; or memory or disk is full, which is no row's fault.
        DeviceFailed: nor is that.
    """
    try:
        return worker(table, seed)
    except (UserError, DeviceFailed):
        raise
    except Exception as error:  # a row that makes the model raise must not cost its neighbours
        _raise_if_of_the_machine(error)
        failure = error
    return _halved(worker, table, seed, failure)


def _raise_if_of_the_machine(error: Exception) -> None:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        raise UserError(f"the disk is full: {error}. Free space, and run the same command again.") from error
    from nlft_ray.models.memory import is_device_failure, is_out_of_memory  # imports torch, as the worker has by now

    one_line = " ".join(str(error).split())[:200]
    if is_device_failure(error):
        raise DeviceFailed(f"{type(error).__name__}: {one_line}") from error
    if is_out_of_memory(error):
        raise UserError(
            f"out of memory: {one_line}. Take model.dtype=bfloat16, or give a worker more: pool.gpus_per_worker, or "
            "fewer workers on a node by pool.max_workers."
        ) from error


def _halved(worker: Worker, table: pa.Table, seed: int, error: Exception) -> WorkResult:
    if table.num_rows > 1:
        halves = table.slice(0, table.num_rows // 2), table.slice(table.num_rows // 2)
        return isolate_failures(worker, halves[0], seed) + isolate_failures(worker, halves[1], seed)
    reason = f"{RAISED}{type(error).__name__}: {' '.join(str(error).split())}"
    return WorkResult(worker.schema.empty_table(), [(table.to_pylist()[0], reason[:200])])
