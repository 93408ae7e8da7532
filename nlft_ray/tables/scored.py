"""The scored table as policies read it: rows whose lists are arrays, and the facts of one row."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from nlft_ray.core.facts import FloatArray, TokenFacts
from nlft_ray.storage.folder import Folder
from nlft_ray.tables.schema import CORRECT
from nlft_ray.tables.shards import DATA

FACTS = ("verdict", "logp_base", "logp_judge", "logp_standard", "hidden_norm", "hidden_cos")
"""Columns that `facts_of` needs."""
_ROWS_AT_ONCE = 256


def read_facts(folder: Folder, columns: Sequence[str] = FACTS) -> Iterator[dict[str, Any]]:
    """Rows of a scored folder in order, a few in memory at a time.

    Lists come as numpy arrays of their own (Python lists would take most of the time), null as None.
    """
    data = folder / DATA
    for name in data.files(".parquet"):
        for batch in data.open_parquet(name).iter_batches(batch_size=_ROWS_AT_ONCE, columns=list(columns)):
            values = {column: _values(batch.column(column)) for column in columns}
            for index in range(batch.num_rows):
                yield {column: cells[index] for column, cells in values.items()}


def _values(column: pa.Array) -> list[Any]:
    if not pa.types.is_list(column.type):
        return column.to_pylist()
    flat = column.values.to_numpy(zero_copy_only=False)
    offsets = column.offsets.to_numpy()
    return [
        flat[start:stop].copy() if valid else None  # a copy: a row that is kept must not keep its whole batch
        for start, stop, valid in zip(offsets[:-1], offsets[1:], column.is_valid().to_pylist(), strict=True)
    ]


def facts_of(row: Mapping[str, Any]) -> TokenFacts:
    """The facts of one row of the scored table.

    Raises:
        ValueError: the row breaks the table's contract.
    """
    logp_base = np.asarray(row["logp_base"], dtype=np.float32)
    return TokenFacts(
        correct=row["verdict"] == CORRECT,
        logp_base=logp_base,
        logp_judge=_optional(row["logp_judge"]),
        logp_standard=_optional(row["logp_standard"]),
        hidden_norm=np.asarray(row["hidden_norm"], dtype=np.float32),
        hidden_cos=np.asarray(row["hidden_cos"], dtype=np.float32).reshape(len(logp_base), -1),
    )


def _optional(values: Any) -> FloatArray | None:
    return None if values is None else np.asarray(values, dtype=np.float32)
