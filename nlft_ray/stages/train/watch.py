"""What the person at the terminal sees while workers train elsewhere: it is read from the files that they write."""

import threading
from types import TracebackType
from typing import Self

from nlft_ray.errors import UserError
from nlft_ray.log import RowProgress, log
from nlft_ray.storage.folder import Folder
from nlft_ray.tables.training import read_metrics

_NOTES = "notes.log"
_SECONDS_BETWEEN_LOOKS, _SECONDS_BETWEEN_DOWNLOADS = 0.5, 5.0


def add_note(output: Folder, message: str) -> None:
    """Leave word for the person at the terminal, such as of a failure that training recovers from. A store that takes
    no word is no reason to end it."""
    try:
        earlier = output.read_text(_NOTES) if output.has(_NOTES) else ""
        output.write_text(_NOTES, earlier + " ".join(message.split())[:500] + "\n")
    except UserError as error:
        log(f"train: {message}; {error}")


class Watch:
    """Shows steps, loss and notes until it is left."""

    def __init__(self, output: Folder, steps: int):
        self._output, self._steps = output, steps
        self._pause = _SECONDS_BETWEEN_LOOKS if output.is_local else _SECONDS_BETWEEN_DOWNLOADS
        self._notes_seen = len(self._notes())
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
        try:
            self._show()
        except UserError as error:  # of a store: those who train meet it too, and what it means is theirs to say
            log(f"train: the progress is not shown any more: {error}")

    def _show(self) -> None:
        done = len(read_metrics(self._output))
        while len(read_metrics(self._output)) == done and not self._stopped.wait(self._pause):
            self._show_notes()  # workers are starting: that time says nothing about the time left
        with RowProgress("train", self._steps, done, unit="steps") as progress:
            last = False
            while not last:
                last = self._stopped.wait(self._pause)
                lines = read_metrics(self._output)
                if len(lines) != done:
                    tokens = sum(line["weighted_tokens"] for line in lines[done:])
                    note = f"loss {lines[-1]['loss']:.4f}" if lines else ""
                    progress.advance(len(lines) - done, tokens, note)
                    done = len(lines)
                self._show_notes()

    def _show_notes(self) -> None:
        notes = self._notes()
        for note in notes[self._notes_seen :]:
            log(f"train: {note}")
        self._notes_seen = len(notes)

    def _notes(self) -> list[str]:
        return self._output.read_text(_NOTES).splitlines() if self._output.has(_NOTES) else []
