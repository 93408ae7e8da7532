"""The record of a training: a line of JSON for each optimizer step, and notes; and what the person at the terminal sees
of it while workers train elsewhere, read from these files. What other programs are sent is in `trackers.py`."""

import json
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from nlft_ray.errors import UserError
from nlft_ray.log import RowProgress, log
from nlft_ray.stages.train.schedule import Order
from nlft_ray.storage.folder import Folder
from nlft_ray.tables.training import METRICS, read_metrics

_NOTES = "notes.log"
_SECONDS_BETWEEN_OBJECTS = 10.0
_SECONDS_BETWEEN_LOOKS, _SECONDS_BETWEEN_DOWNLOADS = 0.5, 5.0


@dataclass(frozen=True)
class StepMetrics:
    """The metrics of one optimizer step, over all workers."""

    step: int
    """Counts from 1."""
    epoch: int
    """Counts from 1."""
    loss: float
    loss_likelihood: float
    """The part of the loss that raises tokens by the policy's weights."""
    loss_unlikelihood: float
    """The part that lowers tokens."""
    loss_anchor: float
    """The part of the plain likelihood term that a policy adds to correct responses."""
    gradient_norm: float
    """Before it is limited by max_gradient_norm."""
    learning_rate: float
    examples: int
    """That were worked on, as the workers counted; so are the tokens."""
    weighted_tokens: int
    workers: int
    """An elastic training has more at some times than at others."""
    seconds: float
    held_out_loss: float | None = None
    """After this step, on the table `held_out`; None where it was not measured."""


def check_epochs(lines: Sequence[Mapping[str, Any]], order: Order, weighted_tokens: int) -> None:
    """Check that every whole epoch in the record worked on every example and every weighted token exactly once.

    Raises:
        RuntimeError: one did not.
    """
    wanted = order.examples, weighted_tokens
    for epoch in range(order.steps // order.steps_per_epoch):
        steps = [line for line in lines if line["epoch"] == epoch + 1]
        counted = tuple(sum(line[key] for line in steps) for key in ("examples", "weighted_tokens"))
        if counted != wanted:
            raise RuntimeError(f"epoch {epoch + 1} worked on (examples, weighted tokens) {counted}, not {wanted}")


class MetricsLog:
    """Writes the record. A resumed training begins with the lines of its checkpoint, so that none is there twice.

    A local file grows line by line. An object in a store cannot: it is written anew every ten seconds.
    """

    def __init__(self, output: Folder, lines: Sequence[dict[str, Any]]):
        self.lines = list(lines)
        self._output, self._finished = output, False
        self._write_all()
        self._file = (Path(output.path) / METRICS).open("a") if output.is_local else None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(UserError) if kind else nullcontext():  # what ended the training is the thing to tell
            self.finish()

    def finish(self) -> None:
        """Write what is not written yet.

        Raises:
            UserError: the store refuses it.
        """
        if self._finished:
            return
        self._finished = True
        if self._file:
            self._file.close()
        else:
            self._write_all()

    def add(self, metrics: StepMetrics) -> None:
        line = asdict(metrics)
        self.lines.append(line)
        if self._file:
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
        elif time.monotonic() - self._written > _SECONDS_BETWEEN_OBJECTS:
            try:
                self._write_all()
            except UserError as error:  # the next one holds these lines too; the last must succeed
                log(f"train: {METRICS} is behind: {error}")

    def _write_all(self) -> None:
        try:
            _write(self._output, self.lines)
        finally:
            self._written = time.monotonic()


def cut_record(output: Folder, steps: int) -> None:
    """Cut the record after this many steps: what came later left no checkpoint and is done again."""
    lines = read_metrics(output)
    if len(lines) > steps:
        _write(output, lines[:steps])


def _write(output: Folder, lines: Sequence[Mapping[str, Any]]) -> None:
    output.write_text(METRICS, "".join(json.dumps(line) + "\n" for line in lines))


def add_note(output: Folder, message: str) -> None:
    """Leave a note for the person at the terminal, such as about a failure that training recovers from.

    A store that refuses the note is logged, never raised.
    """
    try:
        earlier = output.read_text(_NOTES) if output.has(_NOTES) else ""
        output.write_text(_NOTES, earlier + " ".join(message.split())[:500] + "\n")
    except UserError as error:
        log(f"train: {message}; {error}")


class Watch:
    """Shows steps, loss and notes of a training, as its record and its notes grow."""

    def __init__(self, output: Folder, steps: int):
        self._output, self._steps = output, steps
        self._pause = _SECONDS_BETWEEN_LOOKS if output.is_local else _SECONDS_BETWEEN_DOWNLOADS
        self._notes_seen = len(self._notes())

    def run(self, stopped: threading.Event) -> None:
        """Go on until the event is set, and show what is there then."""
        try:
            self._show(stopped)
        except UserError as error:  # of a store: those who train meet it too, and what it means is theirs to say
            log(f"train: the progress is not shown any more: {error}")

    def _show(self, stopped: threading.Event) -> None:
        done = len(read_metrics(self._output))
        while len(read_metrics(self._output)) == done and not stopped.wait(self._pause):
            self._show_notes()  # workers are starting: that time says nothing about the time left
        with RowProgress("train", self._steps, done, unit="steps") as progress:
            last = False
            while not last:
                last = stopped.wait(self._pause)
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
