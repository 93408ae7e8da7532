"""What the person at the terminal sees while workers train elsewhere: it is read from the files that they write."""

import threading
from pathlib import Path
from types import TracebackType
from typing import Self

from nlft_ray.progress import RowProgress, log
from nlft_ray.stages.train.metrics import read_metrics

_FAILURES = "failures.log"
_SECONDS_BETWEEN_LOOKS = 0.5


def note_failure(output: Path, message: str) -> None:
    """Leave word of a failure that training recovers from."""
    with (output / _FAILURES).open("a") as file:
        file.write(" ".join(message.split())[:500] + "\n")


class Watch:
    """Shows steps, loss and failures until it is left."""

    def __init__(self, output: Path, steps: int):
        self._output, self._steps = output, steps
        self._failures_seen = len(self._failures())
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        done = len(read_metrics(self._output))
        while len(read_metrics(self._output)) == done and not self._stopped.wait(_SECONDS_BETWEEN_LOOKS):
            self._show_failures()  # workers are starting: that time says nothing about the time left
        with RowProgress("train", self._steps, done, unit="steps") as progress:
            last = False
            while not last:
                last = self._stopped.wait(_SECONDS_BETWEEN_LOOKS)
                lines = read_metrics(self._output)
                if len(lines) != done:
                    tokens = sum(line["weighted_tokens"] for line in lines[done:])
                    note = f"loss {lines[-1]['loss']:.4f}" if lines else ""
                    progress.advance(len(lines) - done, tokens, note)
                    done = len(lines)
                self._show_failures()

    def _show_failures(self) -> None:
        failures = self._failures()
        for failure in failures[self._failures_seen :]:
            log(f"train: {failure}")
        self._failures_seen = len(failures)

    def _failures(self) -> list[str]:
        path = self._output / _FAILURES
        return path.read_text().splitlines() if path.is_file() else []
