"""The course of an import: one pass over the source, in constant memory but for the ids seen.

An import that was killed begins anew: it is quick, and reading cannot begin in the middle of a stream.
"""

import itertools
import json
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa

from nlft_ray.config import ImportConfig
from nlft_ray.errors import UserError
from nlft_ray.log import log
from nlft_ray.stages.importing.cells import BadRow, check_columns
from nlft_ray.stages.importing.formats import PART, Format, format_of
from nlft_ray.stages.importing.readers import Raw
from nlft_ray.stages.importing.sources import open_source
from nlft_ray.storage.folder import Folder
from nlft_ray.tables.manifest import Identity, Manifest, StageResult, begin, check_rejects, finish, identity_of
from nlft_ray.tables.schema import REJECTS, TABLES, problem_with_example, problem_with_question, problem_with_response
from nlft_ray.tables.shards import DATA, REJECTED, rejects_table

ROWS_PER_PART = 4_000
_ROWS_LOOKED_AT_FOR_COLUMNS = 1_000
_SECONDS_BETWEEN_LINES = 10.0
_PROBLEM_WITH = {
    "questions": problem_with_question,
    "responses": problem_with_response,
    "examples": problem_with_example,
}


def import_data(config: ImportConfig) -> StageResult:
    """Write the table that the source's rows make; rows that cannot be used go to `rejects`, with place and reason.

    Raises:
        UserError: the source or its columns cannot be read, the output belongs to something else, or too many rows
            were unusable.
    """
    source, form, output = open_source(config), format_of(config), Folder(config.output)
    identity = identity_of(
        config.model_copy(update={"source": source.name}), "import", table=form.table, input=source.fingerprint()
    )
    raws = itertools.islice(source.rows(), config.limit)
    first = list(itertools.islice(raws, _ROWS_LOOKED_AT_FOR_COLUMNS))
    if not first:
        raise UserError(f"source: {config.source} holds no rows.")
    check_columns(form.needed, [raw.record for raw in first if raw.record])
    complete = begin(output, identity, overwrite=config.overwrite)
    if complete is not None:
        return StageResult(output=config.output, manifest=complete, reused=True)
    for name in (DATA, REJECTED):
        (output / name).remove()
    writing = _Writing(output, form, {"instruction": config.instruction, "source": source.name})
    manifest = writing.all_of(itertools.chain(first, raws), identity)
    check_rejects(config, "import", manifest, output)
    finish(output, manifest)
    return StageResult(output=config.output, manifest=manifest)


@dataclass
class _Parts:
    """A writer of numbered files with a fixed number of rows in each."""

    folder: Folder
    schema: pa.Schema
    written: int = 0
    waiting: list[Mapping[str, Any]] = field(default_factory=list)

    def add(self, row: Mapping[str, Any]) -> None:
        self.waiting.append(row)
        if len(self.waiting) >= ROWS_PER_PART:
            self.flush()

    def flush(self) -> None:
        if self.waiting:
            number = self.written // ROWS_PER_PART
            table = pa.Table.from_pylist(self.waiting, schema=self.schema)
            self.folder.write_table(f"part-{number:06d}.parquet", table)
            self.written += len(self.waiting)
            self.waiting = []


class _Writing:
    """One pass over the raw rows. `defaults` fill columns that a row does not bring."""

    def __init__(self, output: Folder, form: Format, defaults: Mapping[str, str]):
        self._form, self._defaults = form, defaults
        self._schema = TABLES[form.table]
        self._rows = _Parts(output / DATA, self._schema)
        self._rejects = _Parts(output / REJECTED, REJECTS)
        self._ids: set[str] = set()
        self._reasons: Counter[str] = Counter()
        self._counts: Counter[str] = Counter()

    def all_of(self, raws: Iterable[Raw], identity: Identity) -> Manifest:
        began = last_line = time.monotonic()
        read = 0
        for raw in itertools.chain.from_iterable(map(self._parts_of, raws)):
            read += 1
            self._add(raw)
            if time.monotonic() - last_line > _SECONDS_BETWEEN_LINES:
                last_line = time.monotonic()
                log(f"import: {read} rows read, {self._reasons.total()} unusable")
        self._rows.flush()
        self._rejects.flush()
        return Manifest(
            identity=identity,
            rows_in=read,
            rows_out=self._rows.written,
            rows_rejected=self._reasons.total(),
            reject_reasons=dict(self._reasons),
            seconds=time.monotonic() - began,
            counts=dict(self._counts),
        )

    def _parts_of(self, raw: Raw) -> list[Raw]:
        """A record once for each row that it makes."""
        if raw.record is None or not self._form.parts:
            return [raw]
        return [replace(raw, id=f"{raw.id}-{part}", record={**raw.record, PART: part}) for part in self._form.parts]

    def _add(self, raw: Raw) -> None:
        if raw.record is None:
            self._reject(raw, raw.id, raw.problem, raw.detail)
            return
        try:
            row = self._row(raw)
        except BadRow as problem:
            self._reject(raw, raw.id, str(problem))
            return
        problem_found = _PROBLEM_WITH[self._form.table](row)
        if problem_found is None and row["id"] in self._ids:
            problem_found = "id stands there before: the first row that has it is kept"
        if problem_found:
            self._reject(raw, row["id"] or raw.id, problem_found)
            return
        self._ids.add(row["id"])
        if "verdict" in row:
            self._counts[row["verdict"]] += 1
        self._rows.add(row)

    def _row(self, raw: Raw) -> dict[str, Any]:
        """The row with all columns of the table. An id column that is mapped must be filled in every row."""
        assert raw.record is not None
        converted = self._form.convert(raw.record, self._counts)
        row = {name: converted.get(name) or self._defaults.get(name) for name in self._schema.names}
        row["instruction"] = row["instruction"] or ""
        if not row["id"] and "id" not in converted:
            row["id"] = raw.id
        return row

    def _reject(self, raw: Raw, row_id: str, problem: str, detail: str = "") -> None:
        """Write a reject, whose reason names the place, and count it by the kind of problem alone."""
        kind, _, more = problem.partition(": ")
        self._reasons[kind] += 1
        reason = f"{kind}: {', '.join(filter(None, (raw.place, more, detail)))}"
        row: Any = raw.text if raw.record is None else _encodable(raw.record)
        source_row = {"id": row_id, "place": raw.place, "row": row}
        reject = rejects_table("import", [(source_row, reason)]).to_pylist()[0]
        self._rejects.add(reject)


def _encodable(record: dict[str, Any]) -> Any:
    """The record, or where it holds half surrogate pairs, its JSON text, which escapes them."""
    escaped = json.dumps(record, default=str)
    try:
        json.dumps(record, default=str, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return escaped
    return record
