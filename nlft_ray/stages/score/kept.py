"""Batches that are done of a shard that is not: whoever is killed has lost no more than the batch that it was at."""

import hashlib
from collections.abc import Callable, Sequence

import pyarrow as pa

from nlft_ray.stages.score.scorer import Batch
from nlft_ray.storage.folder import Folder
from nlft_ray.tables.schema import SCORED


class KeptBatches:
    """Files of the scored rows of single batches, in a folder of their own. Each is named by all that its values follow
    from but the model and the settings, which are the same for everything in one output folder.
    """

    def __init__(self, folder: Folder):
        self._folder = folder
        self._names: list[str] = []

    def __call__(self, batches: Sequence[Batch], score: Callable[[Batch], pa.Table]) -> list[pa.Table]:
        """The scored rows of a shard's batches. The last is not kept: the shard is written right after it."""
        before, self._names = self._names, [_name(batch) for batch in batches[:-1]]
        for name in set(before).difference(self._names):  # their shard is written by now
            self._folder.delete(name)
        there = set(self._folder.files(".parquet"))
        tables = []
        for name, batch in zip(self._names, batches[:-1], strict=True):
            table = self._read(name) if name in there else None
            if table is None:
                table = score(batch)
                self._folder.write_table(name, table)
            tables.append(table)
        return tables + [score(batch) for batch in batches[-1:]]

    def _read(self, name: str) -> pa.Table | None:
        """None where the file is damaged, or was deleted by another who does the same shard."""
        try:
            return self._folder.open_parquet(name).read().cast(SCORED)
        except (pa.ArrowInvalid, FileNotFoundError):
            return None


def _name(batch: Batch) -> str:
    rows = [(row.id, row.verdict, row.prompts, row.response_ids, row.standard_ids) for row in batch.rows]
    return hashlib.sha256(repr((batch.prefix, rows)).encode()).hexdigest()[:32] + ".parquet"
