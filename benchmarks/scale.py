"""Does memory stay flat? Scores tables of growing size with a worker that does next to nothing.

    python benchmarks/scale.py 10000 1000000

Each size runs in a process of its own, with its own local cluster. Peaks are those of the kernel (VmHWM), read ten
times a second: of the driver, and of the largest actor. Prints a table and writes scale.json.
"""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
from rich.console import Console
from rich.table import Table

from nlft_ray.config import ScoreConfig
from nlft_ray.execution.table_stage import run_table_stage
from nlft_ray.execution.work import WorkResult
from nlft_ray.storage.folder import Folder
from nlft_ray.tables.manifest import Identity, Manifest, finish
from nlft_ray.tables.schema import EXAMPLES, SCORED
from nlft_ray.tables.shards import DATA

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
    """Watches the peak memory of this process and of its actors, in MB."""

    def __init__(self) -> None:
        self.actor = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Peaks":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def driver(self) -> float:
        return _peak_mb(os.getpid())

    def _watch(self) -> None:
        while not self._stop.wait(0.1):
            for process in psutil.Process().children(recursive=True):
                try:
                    if "_ShardActor" in " ".join(process.cmdline()):
                        self.actor = max(self.actor, _peak_mb(process.pid))
                except (psutil.Error, OSError):
                    continue


def _peak_mb(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def write_examples(folder: Folder, rows: int) -> None:
    for number, start in enumerate(range(0, rows, ROWS_PER_FILE)):
        count = min(ROWS_PER_FILE, rows - start)
        columns: dict[str, Any] = {
            "id": [f"row-{index}" for index in range(start, start + count)],
            "verdict": ["correct"] * count,
        }
        texts = {name: ["short"] * count for name in ("instruction", "question", "response", "source")}
        nothing = {name: [None] * count for name in ("standard_answer", "response_ids", "judgment")}
        table = pa.table(columns | texts | nothing, schema=EXAMPLES)
        (folder / DATA).write_table(f"part-{number:06d}.parquet", table)
    identity = Identity(stage="import", table="examples", software_version="0", config={})
    finish(folder, Manifest(identity=identity, rows_in=rows, rows_out=rows, rows_rejected=0, seconds=0))


def measure(rows: int) -> dict[str, float]:
    """One run in this process."""
    with tempfile.TemporaryDirectory(prefix="scale-") as folder:
        write_examples(Folder(f"{folder}/examples"), rows)
        config = ScoreConfig.model_validate(
            {"input": f"{folder}/examples", "output": f"{folder}/scored", "model": {"path": "sandbox"}}
        )
        began = time.monotonic()
        with Peaks() as peaks:
            run = run_table_stage(
                config, stage="score", reads="examples", writes="scored", worker=Trivial, loads_model=False
            )
        assert run.manifest.rows_out == rows
        return {
            "rows": rows,
            "seconds": time.monotonic() - began,
            "driver_mb": peaks.driver,
            "actor_mb": peaks.actor,
            "files": len(os.listdir(f"{folder}/scored/data")),
        }


def main(sizes: list[int]) -> None:
    found = []
    for size in sizes:
        command = [sys.executable, __file__, "--one", str(size)]
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
        answer = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
        found.append(json.loads(answer.stdout.splitlines()[-1]))
    Path("scale.json").write_text(json.dumps(found, indent=1))
    table = Table(title="Peak memory of scoring with a trivial worker")
    for heading in ("rows", "files", "seconds", "driver, MB", "largest actor, MB"):
        table.add_column(heading, justify="right")
    for one in found:
        figures = (f"{one['seconds']:.0f}", f"{one['driver_mb']:.0f}", f"{one['actor_mb']:.0f}")
        table.add_row(f"{one['rows']:,}", f"{one['files']:,}", *figures)
    Console().print(table)
    for kind in ("driver_mb", "actor_mb"):
        more = found[-1][kind] - found[0][kind]
        print(f"{kind}: {more:+.0f} MB from first to last, {'within' if more <= LIMIT_MB else 'ABOVE'} {LIMIT_MB} MB")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(measure(int(sys.argv[2]))))
    else:
        main([int(argument) for argument in sys.argv[1:]] or [10_000, 1_000_000])
