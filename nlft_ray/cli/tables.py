"""The look of results in a terminal: one kind of table, and a console as wide as the tables need."""

from collections.abc import Collection, Sequence

from rich import box
from rich.console import Console
from rich.table import Table

_LOG_FILE_COLUMNS = 120


def result_console() -> Console:
    """Standard output: in a terminal as wide as it is, in a log file as wide as the tables need."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=_LOG_FILE_COLUMNS)


def result_table(title: str, headings: Sequence[str], *, left: Collection[str] = (), show_header: bool = True) -> Table:
    """A table without rows yet. The first column holds names, the others figures; the columns in `left` hold words."""
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        show_header=show_header,
    )
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="right" if index and heading not in left else "left")
    return table


def percent(part: int, whole: int) -> str:
    """A share with one decimal; 0 % where the whole is 0."""
    return f"{100 * part / max(whole, 1):.1f} %"
