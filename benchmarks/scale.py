"""Memory as tables grow: scoring with a worker that does next to nothing.

    python benchmarks/scale.py 10000 1000000

Each size runs in a process of its own, with its own local cluster. Peaks are those of the kernel (VmHWM), read ten
times a second: of the driver, and of the largest actor. Prints a table and writes scale.json.
"""

import argparse
import json
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import harness
import psutil
import pyarrow as pa

from nlft_ray.config import ScoreConfig
from nlft_ray.execution.table_stage import run_table_stage
from nlft_ray.execution.work import WorkResult
from nlft_ray.tables.schema import EXAMPLES, SCORED

ROWS_PER_FILE = 4_000  # as an import writes them
TOKENS = 8
LIMIT_MB = 200


class Trivial:
    """Makes a scored row of each example without a model."""

    schema = SCORED

    def __init__(self, config: ScoreConfig):
        pass

    def __call__(self, table: pa.Table, seed: int) -> WorkResult:
        facts = [-0.5] * TOKENS
        rows = [
            {
                "id": id,
                "verdict": "correct",
                "input_ids": list(range(TOKENS + 2)),
                "response_start": 2,
                "logp_base": facts,
                "hidden_norm": facts,
                "hidden_cos": facts * 8,
            }
            for id in table["id"].to_pylist()
        ]
        return WorkResult(pa.Table.from_pylist(rows, schema=SCORED), tokens=TOKENS * len(rows))


class Peaks:
    """Peak memory of this process and of its largest actor, in bytes."""

    def __init__(self) -> None:
        self.actor = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Peaks":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def driver(self) -> int:
        return harness.resident_peak()

    def _watch(self) -> None:
        while not self._stop.wait(0.1):
            for process in psutil.Process().children(recursive=True):
                try:
                    if "_ShardActor" in " ".join(process.cmdline()):
                        self.actor = max(self.actor, harness.resident_peak(process.pid))
                except (psutil.Error, OSError, IndexError):  # it is about to go
                    continue


def examples(rows: int) -> Iterator[pa.Table]:
    for start in range(0, rows, ROWS_PER_FILE):
        count = min(ROWS_PER_FILE, rows - start)
        columns: dict[str, Any] = {
            "id": [f"row-{index}" for index in range(start, start + count)],
            "verdict": ["correct"] * count,
        }
        texts = {name: ["short"] * count for name in ("instruction", "question", "response", "source")}
        nothing = {name: [None] * count for name in ("standard_answer", "response_ids", "judgment")}
        yield pa.table(columns | texts | nothing, schema=EXAMPLES)


def measure(rows: int) -> dict[str, float]:
    """One run in this process."""
    with tempfile.TemporaryDirectory(prefix="scale-") as folder:
        harness.write_table(f"{folder}/examples", examples(rows), "examples")
        config = ScoreConfig.model_validate(
            {"input": f"{folder}/examples", "output": f"{folder}/scored", "model": {"path": "sandbox"}}
        )
        began = time.monotonic()
        with Peaks() as peaks:
            run = run_table_stage(
                config, stage="score", reads="examples", writes="scored", make_worker=Trivial, loads_model=False
            )
        assert run.manifest.rows_out == rows
        return {
            "rows": rows,
            "seconds": time.monotonic() - began,
            "driver_mb": peaks.driver / 2**20,
            "actor_mb": peaks.actor / 2**20,
            "files": len(os.listdir(f"{folder}/scored/data")),
        }


def main(sizes: list[int]) -> None:
    path = str(Path(__file__).parents[1])  # of the package, for the actors
    measures = [harness.call_child(__file__, {"rows": size}, PYTHONPATH=path) for size in sizes]
    Path("scale.json").write_text(json.dumps(measures, indent=1))
    figures = ("rows", "files", "seconds", "driver_mb", "actor_mb")
    rows = [[f"{measure[name]:,.0f}" for name in figures] for measure in measures]
    headings = ("rows", "files", "seconds", "driver, MB", "largest actor, MB")
    harness.show("Peak memory of scoring with a trivial worker", headings, rows, left=0)
    for kind in ("driver_mb", "actor_mb"):
        more = measures[-1][kind] - measures[0][kind]
        print(f"{kind}: {more:+.0f} MB from first to last, {'within' if more <= LIMIT_MB else 'ABOVE'} {LIMIT_MB} MB")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("sizes", nargs="*", type=int, default=[10_000, 1_000_000], help="rows of each table")
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        harness.answer(arguments.child, measure(arguments.child["rows"]))
    else:
        main(arguments.sizes)
