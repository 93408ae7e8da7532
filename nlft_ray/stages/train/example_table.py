"""Weighed examples in a file that is mapped into memory: of any number, a worker holds those it looks at."""

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nlft_ray.stages.train.examples import Example

_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("input_ids", pa.list_(pa.int32())),
        ("response_start", pa.int32()),
        ("likelihood", pa.list_(pa.float32())),
        ("unlikelihood", pa.list_(pa.float32())),
        ("anchor", pa.list_(pa.float32())),
    ]
)
_ROWS_PER_BATCH = 512


class ExampleTable(Sequence[Example]):
    """Examples by their place in the order of ids, which does not depend on how the scored table was cut into files."""

    def __init__(self, examples: Iterable[Example]):
        """Write the examples to a file of this process, which goes when the process does."""
        examples, self.weighted_tokens = iter(examples), 0
        with tempfile.NamedTemporaryFile(prefix="nlft-ray-examples-", suffix=".arrow") as file:
            with pa.ipc.new_file(file.name, _SCHEMA) as writer:
                while rows := list(islice(examples, _ROWS_PER_BATCH)):
                    self.weighted_tokens += sum(int(example.weighted.sum()) for example in rows)
                    writer.write_batch(_batch(rows))
            table = pa.ipc.open_file(pa.memory_map(file.name)).read_all()  # holds the file, which loses its name here
        self._batches = table.to_batches()
        self._starts = np.cumsum([0, *(batch.num_rows for batch in self._batches)])
        self._order = pc.sort_indices(table.column("id")).to_numpy()

    def __len__(self) -> int:
        return len(self._order)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | Sequence[Example]:
        if isinstance(index, slice):
            return [self._example(row) for row in self._order[index]]
        return self._example(self._order[index])

    def __iter__(self) -> Iterator[Example]:
        return map(self._example, self._order)

    def _example(self, row: int) -> Example:
        number = int(np.searchsorted(self._starts, row, side="right")) - 1
        batch, at = self._batches[number], int(row - self._starts[number])
        return Example(**{name: _value(batch.column(name)[at]) for name in _SCHEMA.names})


def _batch(examples: Sequence[Example]) -> pa.RecordBatch:
    columns = []
    for field in _SCHEMA:
        values = [getattr(example, field.name) for example in examples]
        if pa.types.is_list(field.type):
            offsets = np.cumsum([0, *map(len, values)], dtype=np.int32)
            columns.append(pa.ListArray.from_arrays(offsets, pa.array(np.concatenate(values), field.type.value_type)))
        else:
            columns.append(pa.array(values, field.type))
    return pa.RecordBatch.from_arrays(columns, schema=_SCHEMA)


def _value(value: pa.Scalar) -> Any:
    return value.values.to_numpy() if isinstance(value, pa.ListScalar) else value.as_py()
