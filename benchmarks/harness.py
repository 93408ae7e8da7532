"""The parts that benchmarks share: data, machine, processes of their own, memory, tables on disk and in the terminal.

Importing it loads neither torch nor nlft-ray, so that a process whose memory or start is measured may use it.
"""

import argparse
import contextlib
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa
    import torch

    from nlft_ray.tables.manifest import Manifest

_FILES = ("train.jsonl", "example_model_solutions.jsonl")


# ---- Arguments and data


def parser_of(document: str) -> argparse.ArgumentParser:
    """A parser with the options of every benchmark that runs patterns on GSM8K; `document` is its docstring."""
    shared = os.environ.get("NLFT_SHARED", "../shared")
    parser = argparse.ArgumentParser(description=document.partition("\n")[0])
    parser.add_argument("--data", type=Path, default=Path(shared) / "data/gsm8k", help="folder of GSM8K")
    parser.add_argument("--output", type=Path, help="JSON file of all figures")
    parser.add_argument("--child", help=argparse.SUPPRESS)  # how a script calls itself: a task, as JSON
    return parser


def need_data(folder: Path) -> None:
    """Leave, with a message, where GSM8K's files are not in the folder."""
    missing = [name for name in _FILES if not (folder / name).is_file()]
    if missing:
        sys.exit(f"--data {folder}: no {' and no '.join(missing)}. Name the folder that holds GSM8K's files.")


# ---- The machine


def describe_machine() -> str:
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{name}, {os.cpu_count()} cores, {memory:.0f} GiB"


def matmul_rate(dtype: "torch.dtype", device: "torch.device") -> float:
    """FLOP/s of a product of 2048 × 2048 matrices: the best of several, which is what undisturbed work would reach."""
    import torch

    left, right = (torch.randn(2048, 2048, dtype=dtype, device=device) for _ in range(2))
    best = float("inf")
    for _ in range(12):
        synchronise()
        began = time.perf_counter()
        left @ right
        synchronise()
        best = min(best, time.perf_counter() - began)
    return 2 * 2048**3 / best


def synchronise() -> None:
    """Wait until the GPU, where there is one, has done its work."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


# ---- Processes of their own


def call_child(script: str, task: dict[str, Any], *, python: str = sys.executable, **environment: str) -> Any:
    """The answer of one child: see `call_children`."""
    return call_children(script, [task], python=python, **environment)[0]


def call_children(
    script: str, tasks: Sequence[dict[str, Any]], *, python: str = sys.executable, **environment: str
) -> list[Any]:
    """Run `script --child TASK` for each task, all at once, each in a process of its own: no memory is another's.

    Leaves with the end of a child's output where one fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / str(number) for number in range(len(tasks))]
        children = [
            subprocess.Popen(
                [python, script, "--child", json.dumps(task | {"answer": str(file)})],
                env=os.environ | {"TRANSFORMERS_VERBOSITY": "error"} | environment,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            for task, file in zip(tasks, files, strict=True)
        ]
        errors = [child.communicate()[1] for child in children]
        for task, child, error in zip(tasks, children, errors, strict=True):
            if child.returncode:
                sys.exit(f"{Path(script).name}: {task} failed:\n{error[-4000:]}")
        return [json.loads(file.read_text()) for file in files]


def answer(task: dict[str, Any], result: Any) -> None:
    """Hand a child's result to the process that called it."""
    Path(task["answer"]).write_text(json.dumps(result))


# ---- Memory, in bytes


def reset_peak() -> int:
    """Begin to count the peak anew; returns the memory in use now, of the GPU where there is one."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    reset_resident_peak()
    return resident()


def peak() -> int:
    """The largest memory in use since `reset_peak`, of the GPU where there is one."""
    import torch

    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else resident_peak()


def reset_resident_peak() -> None:
    """Begin the kernel's high-water mark of this process anew: loading a model may leave a high one."""
    Path("/proc/self/clear_refs").write_text("5")


def resident(process: int | str = "self") -> int:
    return _status("VmRSS", process)


def resident_peak(process: int | str = "self") -> int:
    """The kernel's high-water mark of a process."""
    return _status("VmHWM", process)


def _status(key: str, process: int | str) -> int:
    status = Path(f"/proc/{process}/status").read_text()
    return int(status.partition(f"{key}:")[2].split()[0]) * 1024


class MemoryWatch:
    """Reads the memory of processes of some name a hundred times a second, and waits for a file's first line."""

    def __init__(self, name: str, file: Path):
        self._name, self._file = name, file
        self._memory: list[tuple[float, int]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.first_line = math.nan

    def __enter__(self) -> "MemoryWatch":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    def growth_after(self, moment: float) -> int:
        """Largest sum over the processes after a moment, less the sum at that moment."""
        before = [used for when, used in self._memory if when <= moment][-1]
        return max(used for when, used in self._memory if when > moment) - before

    def _watch(self) -> None:
        processes: list[Path] = []
        searched = 0.0
        while not self._stop.wait(0.01):
            now = time.time()
            if now - searched > 1 and math.isnan(self.first_line):
                processes, searched = list(self._processes()), now
            self._memory.append((now, sum(map(_resident_of, processes))))
            if math.isnan(self.first_line) and self._file.is_file() and self._file.stat().st_size:
                self.first_line = now

    def _processes(self) -> Iterator[Path]:
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if self._name in (folder / "cmdline").read_text():
                    yield folder / "statm"


def _resident_of(statm: Path) -> int:
    with contextlib.suppress(OSError):
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


# ---- Tables


def write_table(
    folder: Path | str, parts: Iterable["pa.Table"], table: str, stage: str = "import", **identity: Any
) -> "Manifest":
    """Write a complete table, as a stage would leave it: a file for each part, and the manifest."""
    from nlft_ray.storage.folder import Folder
    from nlft_ray.tables.manifest import Identity, Manifest, finish
    from nlft_ray.tables.shards import DATA

    output, rows = Folder(str(folder)), 0
    for number, part in enumerate(parts):
        (output / DATA).write_table(f"part-{number:06d}.parquet", part)
        rows += len(part)
    fields: dict[str, Any] = {"software_version": "benchmark", "config": {}} | identity
    manifest = Manifest(
        identity=Identity(stage=stage, table=table, **fields), rows_in=rows, rows_out=rows, rows_rejected=0, seconds=0
    )
    finish(output, manifest)
    return manifest


def table_of(rows: Iterable[dict[str, Any]], schema: "pa.Schema") -> "pa.Table":
    """Rows as an Arrow table; columns that a row does not name are null."""
    import pyarrow as pa

    return pa.Table.from_pylist([dict.fromkeys(schema.names) | row for row in rows], schema=schema)


def show(title: str | None, headings: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> None:
    """Print a table: the first `left` columns are words, the others figures."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title)
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="left" if number < left else "right")
    for row in rows:
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 120).print(table)
