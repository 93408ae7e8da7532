"""Cost of ids and files alone: all that a stage does around its work, on a table of very many small files.

    python benchmarks/metadata.py --files 100000 --ids 10000000
    python benchmarks/metadata.py --files 1000 --ids 100000 --latency 30     # as if every look at a file took 30 ms
    python benchmarks/metadata.py --files 10000 --ids 10000 --ray            # Ray Data's part: shards out, reports back

Ids are spread evenly over the files, and every file is one shard. The steps are those of `run_table_stage`, each by the
same function, but for the work itself: output files hold ids and a footer, nothing else. Every step is timed, and the
process's peak memory (VmHWM) read after it. Prints a table and writes metadata.json.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import harness
import pyarrow as pa
import pyarrow.parquet as pq

from nlft_ray.config import ScoreConfig
from nlft_ray.execution.table_stage import audit_shards, manifest_of
from nlft_ray.execution.work import TableWork, WorkResult
from nlft_ray.storage.folder import Folder
from nlft_ray.tables.audit import digest
from nlft_ray.tables.manifest import Identity, finish
from nlft_ray.tables.schema import SCORED
from nlft_ray.tables.shards import (
    DATA,
    Shard,
    ShardReport,
    finished_shards,
    input_ids,
    plan_shards,
    remove_strays,
)

IDENTITY = Identity(stage="score", table="scored", software_version="0", config={})
PLAN = IDENTITY.fingerprint()


def write_files(folder: str, first: int, last: int, rows: int, finished: bool) -> None:
    """Files of a table, or of the work done on it, whose footers hold their reports."""
    os.makedirs(f"{folder}/{DATA}", exist_ok=True)
    for number in range(first, last):
        ids = [f"gsm8k-train-{index:09d}" for index in range(number * rows, (number + 1) * rows)]
        table = pa.table({"id": ids})
        if finished:
            report = ShardReport(number, rows, rows, {}, 0, 0.1, {"correct": rows}, {}, PLAN, digest(ids))
            table = table.replace_schema_metadata({"nlft_ray": json.dumps(asdict(report))})
        pq.write_table(table, f"{folder}/{DATA}/part-{number:06d}.parquet")


def write_all(folder: str, files: int, rows: int, finished: bool) -> None:
    step = -(-files // 64)
    # Not forked: with a large process Linux refuses that, though its copies would need next to nothing.
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as pool:
        for first in range(0, files, step):
            pool.submit(write_files, folder, first, min(first + step, files), rows, finished)


def peak_mb() -> float:
    return harness.resident_peak() / 2**20


class Steps:
    """Runs one step after another, and keeps what each took."""

    def __init__(self) -> None:
        self.measures: list[dict[str, Any]] = [{"step": "before", "seconds": 0.0, "peak_mb": peak_mb()}]

    def run(self, step: str, function: Callable[[], Any]) -> Any:
        began = time.monotonic()
        result = function()
        self.measures.append({"step": step, "seconds": time.monotonic() - began, "peak_mb": peak_mb()})
        return result


class Nothing:
    """A worker that is never called, since its shards are all done."""

    schema = SCORED

    def __init__(self, config: ScoreConfig):
        pass

    def __call__(self, table: pa.Table, seed: int) -> WorkResult:
        raise AssertionError("every shard is done")


def through_ray(shards: list[Shard], source: Folder, output: Folder) -> None:
    """Every shard goes to one of two actors, which finds it done, and its report comes back."""
    from nlft_ray.execution.ray_actors import RayExecutor

    config = ScoreConfig.model_validate(
        {"input": source.uri, "output": output.uri, "model": {"path": "sandbox"}, "pool": {"max_workers": 2}}
    )
    reports = RayExecutor(None).map_shards(TableWork("score", Nothing, config, source, output), shards)
    assert sum(1 for _ in reports) == len(shards)


def start_ray() -> None:
    from nlft_ray.execution import ray_cluster

    ray_cluster.connect(None)


def measure(folder: str, files: int, ids: int, with_ray: bool) -> list[dict[str, Any]]:
    source, output, rows = Folder(f"{folder}/examples"), Folder(f"{folder}/scored"), ids // files
    write_all(source.path, files, rows, finished=False)
    steps = Steps()
    shards = steps.run("plan shards", lambda: plan_shards(source, None, PLAN))
    assert len(shards) == files
    steps.run("look for finished shards: none", lambda: finished_shards(output, shards))
    digests = steps.run("audit: every id once, and digests", lambda: input_ids(source, shards))
    write_all(output.path, files, rows, finished=True)
    if with_ray:
        steps.run("start Ray", start_ray)
        steps.run("shards through Ray Data", lambda: through_ray(shards, source, output))
    reports = steps.run("look for finished shards: all", lambda: finished_shards(output, shards))
    manifest = steps.run("sum up the reports", lambda: manifest_of(IDENTITY, list(reports.values()), 1.0, {}))
    input_manifest = manifest.model_copy(update={"rows_out": rows * files})
    steps.run("audit: made of the input as it is", lambda: audit_shards(shards, reports, digests, input_manifest))
    assert steps.run("look for strays", lambda: remove_strays(output, shards)) == 0
    steps.run("write the manifest", lambda: finish(output, manifest))
    return steps.measures


def slow_down(milliseconds: float) -> None:
    """Every look at a file waits first, as for an object store."""

    def waiting(look: Callable[..., Any]) -> Callable[..., Any]:
        def wait(*arguments: Any) -> Any:
            time.sleep(milliseconds / 1000)
            return look(*arguments)

        return wait

    for name in ("has", "files", "open_parquet", "write_text"):
        setattr(Folder, name, waiting(getattr(Folder, name)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--files", type=int, default=100_000, help="files of the table")
    parser.add_argument("--ids", type=int, default=10_000_000, help="rows of the table")
    parser.add_argument("--latency", type=float, default=0, help="wait before every look at a file, milliseconds")
    parser.add_argument("--ray", action="store_true", help="send the shards through Ray Data too")
    arguments = parser.parse_args()
    slow_down(arguments.latency)
    with tempfile.TemporaryDirectory(prefix="metadata-") as folder:
        steps = measure(folder, arguments.files, arguments.ids, arguments.ray)
    Path("metadata.json").write_text(json.dumps({**vars(arguments), "steps": steps}, indent=1))
    title = f"{arguments.ids:,} ids in {arguments.files:,} files, {arguments.latency:g} ms to look at one"
    rows = [(step["step"], f"{step['seconds']:.1f}", f"{step['peak_mb']:.0f}") for step in steps]
    harness.show(title, ("step", "seconds", "peak, MB"), rows)


if __name__ == "__main__":
    main()
