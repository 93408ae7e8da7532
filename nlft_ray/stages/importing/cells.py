"""What a record says under a name: a column, a path into nested ones, or a template over several."""

import re
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from typing import Any

import jinja2.meta
import jinja2.sandbox

from nlft_ray.errors import UserError

Record = Mapping[str, Any]

_MAY_BE_NUMBERS = ("id", "standard_answer", "answer")
_STEP = re.compile(r"\[(-?\d+)\]|([^.\[\]]+)")
_RECORD = "row"
"""Name of the whole record in a template, for columns whose names are no identifiers."""
_MISSING = object()
_JINJA = jinja2.sandbox.ImmutableSandboxedEnvironment(
    undefined=jinja2.StrictUndefined, finalize=lambda value: "" if _simplified(value) is None else _simplified(value)
)


class BadRow(Exception):
    """Why a record cannot become a row; one of a few reasons, so that they can be counted."""


def is_template(column: str) -> bool:
    return "{{" in column or "{%" in column


def text_reader(column: str, ours: str) -> Callable[[Record], str | None]:
    """How column `ours` is read: a column, a path, or a Jinja template such as `{{ Body }} {{ Question }}`.

    Raises:
        UserError: it is a template with a mistake in its syntax.
    """
    if not is_template(column):
        return lambda record: text_of(record, column, ours)
    template = _parsed(column, ours)

    def read(record: Record) -> str | None:
        cells = {name: _simplified(value) for name, value in record.items()}
        try:
            return _checked_text(template.render({**cells, _RECORD: cells}), ours)
        except Exception as error:  # whatever an expression does with the row's values
            raise BadRow(f"the template of {ours} fails: {error}") from error

    return read


def _parsed(column: str, ours: str) -> jinja2.Template:
    try:
        return _JINJA.from_string(column)
    except jinja2.TemplateError as error:
        raise UserError(f"columns: the template of {ours} is wrong: {error} in {column!r}.") from error


def columns_of(name: str) -> list[str]:
    """The columns that a name needs: itself, or those that a template speaks of."""
    if not is_template(name):
        return [name]
    return sorted(jinja2.meta.find_undeclared_variables(_JINJA.parse(name)) - {_RECORD})


def look_up(record: Record, column: str) -> Any:
    """A cell; None where there is none. `a.b[0]` is the first item under key b of the object in column a, unless there
    is a column of that very name. A list of one value is that value, NaN a missing one."""
    value = _reach(record, column)
    return None if value is _MISSING else _simplified(value)


def _reach(value: Any, path: str) -> Any:
    if isinstance(value, Mapping) and path in value:
        return value[path]
    step = _STEP.match(path)
    if step is None:
        return _MISSING
    index, key = step.groups()
    if index is None:
        inner = value.get(key, _MISSING) if isinstance(value, Mapping) else _MISSING
    else:
        inner = value[int(index)] if isinstance(value, list) and -len(value) <= int(index) < len(value) else _MISSING
    rest = path[step.end() :].removeprefix(".")
    return inner if inner is _MISSING or not rest else _reach(inner, rest)


def _simplified(value: Any) -> Any:
    while isinstance(value, list) and len(value) == 1 and not isinstance(value[0], Mapping):
        value = value[0]
    return None if isinstance(value, float) and value != value else value


def text_of(record: Record, column: str, ours: str = "") -> str | None:
    """A cell as text, unchanged; None where it is missing or blank.

    Raises:
        BadRow: it holds something else.
    """
    value = look_up(record, column)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if number and (ours or column) in _MAY_BE_NUMBERS:
        return str(value)
    if value is None:
        return None
    if not isinstance(value, str):
        raise BadRow(f"{column} is not text")
    return _checked_text(value, column)


def _checked_text(value: str, column: str) -> str | None:
    try:
        value.encode()
    except UnicodeEncodeError:  # JSON can spell half of a surrogate pair, and CSV may hold bytes that are not UTF-8
        raise BadRow(f"{column} is not valid Unicode") from None
    return value if value.strip() else None


def check_columns(needed: Iterable[str], records: Iterable[Record]) -> None:
    """Whether the first records have the columns that a format reads.

    Raises:
        UserError: names what is missing, what there is, and what comes near.
    """
    records = list(records)
    there: dict[str, None] = {}
    for record in records:
        there.update(dict.fromkeys(_names_in(record)))
    problems = []
    for column in dict.fromkeys(needed) if there else ():
        if all(_reach(record, column) is _MISSING for record in records):
            near = get_close_matches(column, there, n=3)
            problems.append(f"  {column}" + (f" (did you mean {' or '.join(near)}?)" if near else ""))
    if problems:
        raise UserError(
            "source: the first rows have no column\n" + "\n".join(problems) + f"\nThey have: {', '.join(there)}."
        )


def _names_in(record: Record, prefix: str = "") -> Iterable[str]:
    for column, value in record.items():
        yield f"{prefix}{column}"
        if isinstance(value, Mapping):
            yield from _names_in(value, f"{prefix}{column}.")
