"""Results in a notebook: tables in HTML, which a cell shows for what has a method `_repr_html_`."""

from collections.abc import Iterable, Sequence

from markupsafe import escape


def html_table(title: str, headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A small table: the first column holds names, the others figures. Headings that are all empty are left out."""
    head = f"<thead>{_line(headings, 'th')}</thead>" if any(headings) else ""
    body = "".join(_line(row, "td") for row in rows)
    return f"<table><caption>{escape(title)}</caption>{head}<tbody>{body}</tbody></table>"


def _line(values: Sequence[str], tag: str) -> str:
    sides = ["left", *["right"] * (len(values) - 1)]
    cells = (
        f'<{tag} style="text-align:{side}">{escape(value)}</{tag}>' for side, value in zip(sides, values, strict=True)
    )
    return f"<tr>{''.join(cells)}</tr>"
