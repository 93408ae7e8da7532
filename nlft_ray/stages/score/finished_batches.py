"""Scored batches of an unfinished shard, on disk: a kill costs what was scored since they were last written.

They are written in the background, several to a file, when enough work would be lost; each shard has a folder, which is
removed as a whole. A shard that is done sooner than that writes nothing here.
"""

import hashlib
import json
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import pyarrow as pa

from nlft_ray.errors import UserError
from nlft_ray.stages.score.scorer import ScoringBatch
from nlft_ray.storage.folder import Folder, map_concurrently
from nlft_ray.tables.audit import digest
from nlft_ray.tables.schema import SCORED

SECONDS_BETWEEN_WRITES = 30.0
_FOOTER_KEY = b"batches"

_Tables = dict[str, pa.Table]
"""Scored rows of single batches, by the batches' keys."""


class FinishedBatches:
    """Batches of one shard at a time, for one worker.

    A batch's key is a hash of its rows, of what ran before them and of how they run: all that its values follow from
    but the model and the settings, which are the same for everything in one output folder.
    """

    def __init__(self, folder: Folder, seconds_between_writes: float = SECONDS_BETWEEN_WRITES):
        self._folder = folder
        self._seconds = seconds_between_writes
        self._thread = ThreadPoolExecutor(1, "finished-batches")
        self._writing: Future[None] | None = None
        self._ids: set[str] = set()
        self._shard = folder
        self._on_disk = False
        self._tables: _Tables = {}
        self._unwritten: _Tables = {}
        self._last_write = time.monotonic()

    def begin(self, ids: Sequence[str]) -> None:
        """Go to the shard of these rows. The shard before it is written by now, so its batches go.

        Where all rows belong to the shard that is open, it stays so: a row of it made the model raise, and the others
        are scored in parts.

        Raises:
            UserError: the folder cannot be read or written.
        """
        if self._ids.issuperset(ids):
            return
        self.wait()
        if self._on_disk:
            self._shard.remove()
        self._ids, self._shard = set(ids), self._folder / digest(ids)
        names = self._shard.files(".parquet")
        self._on_disk = bool(names)
        self._tables, self._unwritten = {}, {}
        for tables in map_concurrently(self._read, names):
            self._tables |= tables
        self._last_write = time.monotonic()

    def get(self, batch: ScoringBatch) -> pa.Table | None:
        """A batch's scored rows; None where it is not finished."""
        return self._tables.get(_key(batch))

    def add(self, batch: ScoringBatch, table: pa.Table) -> None:
        """Take a batch's scored rows, to be written some time later."""
        key = _key(batch)
        self._tables[key] = self._unwritten[key] = table

    def write_when_due(self) -> None:
        """Begin to write what is unwritten, if it is time for that and nothing else is being written.

        Raises:
            UserError: what was written last failed.
        """
        if self._writing is not None and self._writing.done():
            self.wait()
        due = time.monotonic() - self._last_write >= self._seconds
        if due and self._unwritten and self._writing is None:
            self._writing = self._thread.submit(_write, self._shard, self._unwritten)
            self._unwritten, self._on_disk, self._last_write = {}, True, time.monotonic()

    def wait(self) -> None:
        """Wait until nothing is being written.

        Raises:
            UserError: it failed.
        """
        writing, self._writing = self._writing, None
        if writing is None:
            return
        try:
            writing.result()
        except OSError as error:  # which is no row's fault
            raise UserError(f"{self._shard}: cannot be written: {error}. Run the same command again.") from error

    def _read(self, name: str) -> _Tables:
        """The batches of a file; none where it is damaged, or was removed by another who does the same shard."""
        try:
            file = self._shard.open_parquet(name)
            rows, sizes = file.read().cast(SCORED), json.loads(file.metadata.metadata[_FOOTER_KEY])
        except (pa.ArrowInvalid, OSError, KeyError, TypeError, ValueError):
            return {}
        tables, start = {}, 0
        for key, size in sizes.items():
            tables[key] = rows.slice(start, size)
            start += size
        return tables


def _write(folder: Folder, tables: _Tables) -> None:
    sizes = json.dumps({key: table.num_rows for key, table in tables.items()})
    name = hashlib.sha256(sizes.encode()).hexdigest()[:32] + ".parquet"
    folder.write_table(name, pa.concat_tables(tables.values()), {_FOOTER_KEY.decode(): sizes})


def _key(batch: ScoringBatch) -> str:
    rows = [(row.id, row.verdict, row.prompts, row.response_ids, row.standard_ids) for row in batch.rows]
    content = (dict(batch.prefixes), bool(batch.forests), rows)
    return hashlib.sha256(repr(content).encode()).hexdigest()[:32]
