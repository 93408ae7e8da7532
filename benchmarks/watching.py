"""Looks at the memory of other processes, and at when they begin to write."""

import contextlib
import math
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path


class Watch:
    """Looks, a hundred times a second, at the memory of processes of some name, and waits for a file's first line."""

    def __init__(self, name: str, file: Path):
        self._name, self._file = name, file
        self._memory: list[tuple[float, int]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self.first_line = math.nan

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    def growth_after(self, moment: float) -> int:
        """Bytes, over all the processes, at the most, above what they held at that moment."""
        held = [used for when, used in self._memory if when <= moment][-1]
        return max(used for when, used in self._memory if when > moment) - held

    def _look(self) -> None:
        processes: list[Path] = []
        searched = 0.0
        while not self._stop.wait(0.01):
            now = time.time()
            if now - searched > 1 and math.isnan(self.first_line):
                processes, searched = list(self._processes()), now
            self._memory.append((now, sum(map(_resident, processes))))
            if math.isnan(self.first_line) and self._file.is_file() and self._file.stat().st_size:
                self.first_line = now

    def _processes(self) -> Iterator[Path]:
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if self._name in (folder / "cmdline").read_text():
                    yield folder / "statm"


def _resident(statm: Path) -> int:
    with contextlib.suppress(OSError):
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0
