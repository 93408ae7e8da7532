"""Examples are read from a mapped file: the same, by their ids' order, and not held in memory."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa

from nlft_ray.stages.train.examples import Example, ExampleTable, write_examples
from nlft_ray.storage.folder import Folder


def example(number: int, length: int = 5) -> Example:
    weights = (np.arange(length, dtype=np.float32) + number) % 3
    ids = np.arange(length + 2, dtype=np.int32) * number
    return Example(f"row-{number:06d}", ids, 2, weights, 2 - weights, (weights / 2).astype(np.float32))


def written(folder: Path, examples: Iterable[Example]) -> ExampleTable:
    write_examples(examples, Folder(str(folder)), "examples.arrow")
    return ExampleTable(Folder(str(folder)), "examples.arrow")


def test_every_example_comes_back_in_the_order_of_ids(tmp_path: Path) -> None:
    numbers = np.random.default_rng(0).permutation(1300)  # more than two batches
    table = written(tmp_path, (example(int(number), 1 + int(number) % 7) for number in numbers))
    assert len(table) == 1300
    for number, found in enumerate(table):
        wanted = example(number, 1 + number % 7)
        assert (found.id, found.response_start) == (wanted.id, 2)
        for name in ("input_ids", "likelihood", "unlikelihood", "anchor"):
            assert getattr(found, name).dtype == getattr(wanted, name).dtype
            np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name))
    assert table[7].id == "row-000007"
    assert [found.id for found in table[3:5]] == ["row-000003", "row-000004"]
    assert table.weighted_tokens == sum(int(found.weighted.sum()) for found in table)


def test_a_large_table_is_not_held_in_memory(tmp_path: Path) -> None:
    before = pa.total_allocated_bytes()
    table = written(tmp_path, (example(number, 2000) for number in range(4000)))
    size = len(table) * 2000 * 4 * 4
    assert size > 100e6
    assert pa.total_allocated_bytes() - before < size / 50
