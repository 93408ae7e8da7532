"""Files → raw records, each with its place. What is no record is marked as such and never ends the reading."""

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import pyarrow as pa

from nlft_ray.errors import UserError
from nlft_ray.storage.folder import Folder

_TEXT_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv")
_COMPRESSIONS = (".gz", ".zst")
SUFFIXES = (
    *_TEXT_SUFFIXES,
    ".parquet",
    ".arrow",
    *(suffix + compressed for compressed in _COMPRESSIONS for suffix in _TEXT_SUFFIXES),
)
_LONGEST_CELL = 2**31 - 1
"""Characters: what the CSV reader can be told to allow at most; its own limit is 131,072."""
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Raw:
    """One row as it stands in a source: a record, or what stands there instead and why it is none."""

    id: str  # for rows that bring no id of their own
    place: str
    record: dict[str, Any] | None = None
    problem: str = ""  # one of a few, so that it can be counted
    detail: str = ""
    text: str = ""


@dataclass(frozen=True)
class SourceFile:
    """A file in a folder; `stem` is what its rows' ids begin with."""

    folder: Folder
    name: str
    stem: str

    def open(self) -> BinaryIO:
        """The bytes, decompressed where the name ends as one of a compressed file."""
        return self.folder.open(self.name)

    def kind(self) -> str:
        """Its suffix without that of a compression: `.jsonl`, `.csv` and so on."""
        name = self.name
        for suffix in _COMPRESSIONS:
            name = name.removesuffix(suffix)
        return name[name.rindex(".") :]

    def raw(self, unit: str, number: int, **fields: Any) -> Raw:
        return Raw(id=f"{self.stem}-{number}", place=f"{self.name} {unit} {number}", **fields)


def read_file(file: SourceFile) -> Iterator[Raw]:
    """Every row of a file, in order. Lines and rows are numbered from 1.

    Raises:
        UserError: the file as a whole cannot be read.
    """
    read = 0
    try:
        for raw in _READERS[file.kind()](file):
            yield raw
            read += 1
    except (pa.ArrowException, OSError, csv.Error) as error:
        raise unreadable(file, f"after row {read}", error) from error


def unreadable(file: SourceFile, where: str, error: Exception) -> UserError:
    reason = re.sub(r"\s+", " ", str(error))[:200]
    return UserError(f"source: {file.folder / file.name} cannot be read {where}: {reason}")


def _read_json(file: SourceFile) -> Iterator[Raw]:
    return _read_array(file) if _begins_as_array(file) else _read_lines(file)


def _begins_as_array(file: SourceFile) -> bool:
    """Whether a .json file holds one array; many hold one object a line all the same.

    Raises:
        UserError: it is one JSON object, spread over lines.
    """
    with file.open() as stream:
        for line in stream:
            begin = line.removeprefix(_BYTE_ORDER_MARK).strip()
            if begin:
                if begin.startswith(b"{") and not begin.endswith(b"}"):
                    raise UserError(
                        f"source: {file.folder / file.name} holds one JSON object; it must hold an array of objects, "
                        "or one object a line."
                    )
                return begin.startswith(b"[")
    return False


def _read_lines(file: SourceFile) -> Iterator[Raw]:
    with file.open() as stream:
        for number, line in enumerate(stream, 1):
            line = line.removeprefix(_BYTE_ORDER_MARK) if number == 1 else line
            if line.strip():
                yield file.raw("line", number, **_parsed(line))


def _parsed(line: bytes) -> dict[str, Any]:
    """The fields of `Raw` for one line."""
    shown = line.decode(errors="backslashreplace").rstrip("\r\n")
    try:
        record = json.loads(line.decode())
    except UnicodeDecodeError as error:
        return {"problem": "not UTF-8", "detail": f"byte {error.start + 1} of the line", "text": shown}
    except json.JSONDecodeError as error:
        detail = f"{error.msg} at character {error.pos + 1}"
        return {"problem": "not JSON", "detail": detail, "text": shown}
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, or brackets without end
        return {"problem": "not JSON", "detail": str(error)[:100], "text": shown}
    return _as_record(record, shown)


def _as_record(value: Any, shown: str | None = None) -> dict[str, Any]:
    if isinstance(value, dict):
        return {"record": value}
    text = json.dumps(value, default=str) if shown is None else shown
    return {"problem": "not a JSON object", "detail": f"it is {_json_type(value)}", "text": text}


def _json_type(value: Any) -> str:
    names = {list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


def _read_array(file: SourceFile) -> Iterator[Raw]:
    """A JSON array has no lines to tell apart, so it is read whole, and one mistake in its syntax spoils it all."""
    whole = f"source: {file.folder / file.name}"
    with file.open() as stream:
        content = stream.read()
    try:
        items = json.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UserError(f"{whole} is not UTF-8: byte {error.start + 1}.") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{whole} is not JSON: {error.msg} in line {error.lineno}, column {error.colno}.") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{whole} is not JSON that can be read: {error}.") from error
    for number, item in enumerate(items, 1):
        yield file.raw("item", number, **_as_record(item))


def _read_parquet(file: SourceFile) -> Iterator[Raw]:
    return _rows(file, file.folder.open_parquet(file.name).iter_batches(batch_size=1024))


def _read_arrow(file: SourceFile) -> Iterator[Raw]:
    """Arrow's stream, as `datasets` saves it, or its file, as `feather` does."""
    with file.open() as stream:
        is_file = stream.read(6) == b"ARROW1"
    with file.open() as stream:
        if is_file:  # its directory stands at the end
            reader = pa.ipc.open_file(pa.BufferReader(stream.read()))
            yield from _rows(file, (reader.get_batch(index) for index in range(reader.num_record_batches)))
        else:
            yield from _rows(file, pa.ipc.open_stream(stream))


def _rows(file: SourceFile, batches: Iterable[pa.RecordBatch]) -> Iterator[Raw]:
    number = 0
    for batch in batches:
        for fields in _records(batch):
            number += 1
            yield file.raw("row", number, **fields)


def _read_csv(file: SourceFile) -> Iterator[Raw]:
    """Rows under a header; every cell is text, an empty one is missing. Bytes that are not UTF-8 spoil their row alone.

    Raises:
        UserError: the header names a column twice.
    """
    csv.field_size_limit(_LONGEST_CELL)
    delimiter = "\t" if file.kind() == ".tsv" else ","
    with io.TextIOWrapper(file.open(), "utf-8-sig", errors="surrogateescape", newline="") as text:
        lines = csv.reader(text, delimiter=delimiter, strict=True)
        header = next(lines, [])
        twice = [name for name, count in Counter(header).items() if count > 1]
        if twice:
            raise UserError(f"source: {file.folder / file.name} names column {twice[0]!r} twice in its first line.")
        for number, cells in enumerate((cells for cells in lines if cells), 1):
            yield file.raw("row", number, **_under(header, cells))


def _under(header: list[str], cells: list[str]) -> dict[str, Any]:
    """The fields of `Raw` for the cells of one row."""
    if len(cells) == len(header):
        return {"record": dict(zip(header, cells, strict=True))}
    shown = json.dumps(cells)
    detail = f"{len(cells)} instead of {len(header)}"
    return {"problem": "another number of cells than the header has", "detail": detail, "text": shown}


def _records(batch: pa.RecordBatch) -> Iterator[dict[str, Any]]:
    """The fields of `Raw` for each row; a string column may hold bytes that are no text."""
    try:
        yield from ({"record": record} for record in batch.to_pylist())
        return
    except UnicodeDecodeError:
        pass
    for index in range(batch.num_rows):
        try:
            yield {"record": batch.slice(index, 1).to_pylist()[0]}
        except UnicodeDecodeError:
            yield {"problem": "not UTF-8"}


_READERS: dict[str, Callable[[SourceFile], Iterator[Raw]]] = {
    ".jsonl": _read_lines,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".parquet": _read_parquet,
    ".arrow": _read_arrow,
}
