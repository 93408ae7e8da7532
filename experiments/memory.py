"""The largest memory of one process while something runs: its resident bytes, looked at several times a second."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from threading import Event

import psutil

from nlft_ray.execution.process import in_background

_SECONDS_BETWEEN_LOOKS = 0.2


@dataclass
class Peak:
    """Most resident bytes of any one process at any look."""

    bytes: int = 0

    def watch(self, stopped: Event) -> None:
        """Look at this process and Ray's workers below it until the event is set."""
        this = psutil.Process()
        while not stopped.wait(_SECONDS_BETWEEN_LOOKS):
            for process in [this, *this.children(recursive=True)]:
                with suppress(psutil.Error):  # it has ended meanwhile
                    self.bytes = max(self.bytes, process.memory_info().rss)


@contextmanager
def peak_memory() -> Iterator[Peak]:
    """Within, memory is watched; afterwards the peak is known."""
    peak = Peak()
    with in_background(peak.watch):
        yield peak
