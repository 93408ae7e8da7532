"""The largest memory of one process while something runs: its resident bytes, looked at several times a second."""

import threading
from contextlib import suppress
from types import TracebackType
from typing import Self

import psutil

_SECONDS_BETWEEN_LOOKS = 0.2


class PeakMemory:
    """Watches this process and Ray's workers below it, until it is left."""

    def __init__(self) -> None:
        self.bytes = 0
        """Most resident bytes of any one of them at any look."""
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        self._thread.join()

    def _watch(self) -> None:
        this = psutil.Process()
        while not self._stopped.wait(_SECONDS_BETWEEN_LOOKS):
            for process in [this, *this.children(recursive=True)]:
                with suppress(psutil.Error):  # it has ended meanwhile
                    self.bytes = max(self.bytes, process.memory_info().rss)
