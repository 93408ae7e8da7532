"""Progress of long work: a live bar in a terminal or a notebook, a line every ten seconds in a log file."""

import html
import sys
import time
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_SECONDS_BETWEEN_LINES, _SECONDS_BETWEEN_PICTURES = 10.0, 0.5


def log(message: str) -> None:
    """One line for the person who watches; results go to standard output, this does not."""
    print(message, file=sys.stderr, flush=True)


class RowProgress:
    """Shows rows done of a total, tokens run per second and the time left. `initial` rows were done before."""

    def __init__(self, label: str, total: int, initial: int = 0, unit: str = "rows"):
        self._label, self._total, self._done, self._unit = label, total, initial, unit
        self._initial = initial
        self._tokens = 0
        self._began = self._last_line = time.monotonic()
        self._bar: Progress | None = None
        self._cell: Any = None

    def __enter__(self) -> "RowProgress":
        console = Console(stderr=True)
        if console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description:>9}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn(f"{self._unit}  {{task.fields[rate]}}"),
                TimeRemainingColumn(),
                console=console,
                transient=True,
            )
            self._bar.start()
            self._task = self._bar.add_task(self._label, total=self._total, completed=self._initial, rate="")
        elif console.is_jupyter:
            from IPython.display import HTML, display  # there in every notebook; rich's bar would need ipywidgets too

            self._cell = display(HTML(self._picture("")), display_id=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    def advance(self, rows: int, tokens: int = 0, note: str = "") -> None:
        """Show that `rows` more are done; `note` is shown beside them, such as the loss."""
        self._done += rows
        self._tokens += tokens
        now = time.monotonic()
        seconds = max(now - self._began, 1e-9)
        rate = f"{self._tokens / seconds:,.0f} tokens/s" if self._tokens else ""
        rate = ", ".join(part for part in (note, rate) if part)
        if self._bar:
            self._bar.update(self._task, completed=self._done, rate=rate)
            return
        pause = _SECONDS_BETWEEN_PICTURES if self._cell else _SECONDS_BETWEEN_LINES
        if now - self._last_line < pause and self._done != self._total:
            return
        self._last_line = now
        left = (self._total - self._done) * seconds / max(self._done - self._initial, 1)
        said = f"{rate or 'no tokens yet'}, {left:.0f} s left"
        if self._cell:
            from IPython.display import HTML

            self._cell.update(HTML(self._picture(said)))
        else:
            log(f"{self._label}: {self._done}/{self._total} {self._unit}, {said}")

    def _picture(self, said: str) -> str:
        """The bar in a notebook's cell, which is drawn anew in its place."""
        text = ", ".join(part for part in (f"{self._label}: {self._done}/{self._total} {self._unit}", said) if part)
        return f'<progress value="{self._done}" max="{self._total}"></progress> {html.escape(text)}'
