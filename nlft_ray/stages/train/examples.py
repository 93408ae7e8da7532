"""Weighed examples: one by one, in a table that is mapped into memory, and in the micro-batches that run."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Self, overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from nlft_ray.core.prefix import common_prefix_length
from nlft_ray.errors import UserError
from nlft_ray.models.packing import PackedTexts, moved
from nlft_ray.storage.folder import Folder
from nlft_ray.tables.schema import WEIGHED

_ROWS_PER_BATCH = 512


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """One row as it is trained on: T tokens, the last n of which are trained. Its fields are the table's columns."""

    id: str
    input_ids: npt.NDArray[np.int32]
    """(T,) base prompt and trained tokens."""
    response_start: int
    """T - n."""
    likelihood: npt.NDArray[np.float32]
    """(n,) weights of -log p."""
    unlikelihood: npt.NDArray[np.float32]
    """(n,) weights of -log(1 - p)."""
    anchor: npt.NDArray[np.float32]
    """(n,) how much of `likelihood` the policy's plain likelihood term brings; apart in the metrics only."""

    @property
    def n(self) -> int:
        return len(self.likelihood)

    @property
    def weight(self) -> float:
        """Sum of all weights."""
        return float(self.likelihood.sum(dtype=np.float64) + self.unlikelihood.sum(dtype=np.float64))

    @property
    def weighted(self) -> npt.NDArray[np.bool_]:
        """(n,) the tokens that have a weight: the model is asked for no other."""
        return (self.likelihood > 0) | (self.unlikelihood > 0)


def write_examples(examples: Iterable[Example], folder: Folder, name: str) -> str:
    """Write a table of examples as a file that can be mapped, whole or not at all; the SHA-256 of its bytes."""
    examples = iter(examples)
    with folder.atomic_file(name) as path:
        with pa.ipc.new_file(str(path), WEIGHED) as writer:
            while rows := list(islice(examples, _ROWS_PER_BATCH)):
                writer.write_batch(_record_batch(rows))
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


class ExampleTable(Sequence[Example]):
    """A table of examples, of any size: in memory is what is looked at.

    Its order is that of the ids, which does not depend on how the scored table was cut into files.
    """

    def __init__(self, folder: Folder, name: str):
        """Map a file that `write_examples` wrote; one in a store is copied to this machine first.

        Raises:
            UserError: there is no such file.
        """
        if not folder.has(name):
            raise UserError(
                f"output: {folder} has no {name} on this machine, which the start of the training has written there. "
                "Workers and the process that starts them must see the same folder: give one that all nodes share."
            )
        with folder.local_files([name]) as local:
            # The mapping holds the file: a copy may lose its name here.
            table = pa.ipc.open_file(pa.memory_map(str(local / name))).read_all()
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

    @property
    def weighted_tokens(self) -> int:
        """Tokens with a weight, in all examples."""
        likelihood, unlikelihood = (
            [batch.column(name).flatten().to_numpy() for batch in self._batches]
            for name in ("likelihood", "unlikelihood")
        )
        return sum(int(((up > 0) | (down > 0)).sum()) for up, down in zip(likelihood, unlikelihood, strict=True))

    def _example(self, row: int) -> Example:
        number = int(np.searchsorted(self._starts, row, side="right")) - 1
        batch, index = self._batches[number], int(row - self._starts[number])
        return Example(**{name: _value(batch.column(name)[index]) for name in WEIGHED.names})


def _record_batch(examples: Sequence[Example]) -> pa.RecordBatch:
    columns = []
    for field in WEIGHED:
        values = [getattr(example, field.name) for example in examples]
        if pa.types.is_list(field.type):
            offsets = np.cumsum([0, *map(len, values)], dtype=np.int32)
            columns.append(pa.ListArray.from_arrays(offsets, pa.array(np.concatenate(values), field.type.value_type)))
        else:
            columns.append(pa.array(values, field.type))
    return pa.RecordBatch.from_arrays(columns, schema=WEIGHED)


def _value(value: pa.Scalar) -> Any:
    return value.values.to_numpy() if isinstance(value, pa.ListScalar) else value.as_py()


@dataclass(frozen=True, eq=False)
class MicroBatch:
    """Up to B examples on (R, T) positions; M trained tokens with a weight, example after example.

    What stands behind an example's last weighted token changes nothing, so it does not run.
    """

    inputs: dict[str, Any]
    """Arguments of the model's forward: (R, T) ids and what belongs to them. R is B where rows are padded, else 1."""
    keep: Tensor
    """(R, T) bool, the M positions whose logits are needed: the LM head runs at no other."""
    targets: Tensor
    """(M,) int64."""
    example: Tensor
    """(M,) int64, which of the examples each token belongs to."""
    likelihood: Tensor
    """(M,) float32, weights of -log p."""
    unlikelihood: Tensor
    """(M,) float32, weights of -log(1 - p)."""
    anchor: Tensor
    """(M,) float32, how much of `likelihood` the policy's plain likelihood term brings."""
    tokens_per_example: Tensor
    """(B,) n of each example: all its trained tokens, those without a weight too."""

    @classmethod
    def of(cls, examples: Sequence[Example], pad_id: int, *, packed: bool) -> Self:
        """Without examples: one token with weight 0, for a worker that has nothing to do but take part."""
        if not examples:
            nothing = np.zeros(1, np.float32)
            examples = [Example("", np.full(2, pad_id, np.int32), 1, nothing, nothing, nothing)]
        trained = [_trained(example) for example in examples]
        rows = [
            example.input_ids[: example.response_start + int(tokens[-1])].tolist()
            for example, tokens in zip(examples, trained, strict=True)
        ]
        if packed:
            prompts = [example.input_ids[: example.response_start].tolist() for example in examples]
            inputs, starts = packed_inputs(rows, common_prefix_length(prompts) if len(rows) > 1 else 0)
        else:
            inputs = _padded_inputs(rows, pad_id)
            starts = [row * inputs["input_ids"].shape[1] for row in range(len(rows))]
        keep = torch.zeros(inputs["input_ids"].numel(), dtype=torch.bool)
        for example, tokens, start in zip(examples, trained, starts, strict=True):
            keep[start + example.response_start - 1 + tokens] = True
        weights = {
            name: torch.from_numpy(
                np.concatenate(
                    [getattr(example, name)[tokens] for example, tokens in zip(examples, trained, strict=True)]
                )
            )
            for name in ("likelihood", "unlikelihood", "anchor")
        }
        targets = [
            example.input_ids[example.response_start + tokens]
            for example, tokens in zip(examples, trained, strict=True)
        ]
        return cls(
            inputs=inputs | {"use_cache": False},
            keep=keep.view(inputs["input_ids"].shape),
            targets=torch.from_numpy(np.concatenate(targets)).long(),
            example=torch.repeat_interleave(torch.arange(len(examples)), torch.tensor([len(t) for t in trained])),
            tokens_per_example=torch.tensor([example.n for example in examples]),
            **weights,
        )

    def to(self, device: torch.device) -> Self:
        return replace(self, **moved(vars(self), device))


def _trained(example: Example) -> np.ndarray:
    """Which of an example's n tokens have a weight; the first, where none has."""
    tokens = example.weighted.nonzero()[0]
    return tokens if len(tokens) else np.zeros(1, np.int64)


def packed_inputs(rows: Sequence[Sequence[int]], shared: int) -> tuple[dict[str, Any], list[int]]:
    """Arguments of the model's forward for rows that share their first tokens, and where each row's position 0 is (for
    positions from `shared` on): row r's position t stands at starts[r] + t."""
    texts, starts = PackedTexts(), []
    beginning = texts.append(rows[0][:shared], ()) if shared else ()
    for row in rows:
        starts.append(len(texts.ids) - shared)
        texts.append(row[shared:], beginning)
    return texts.inputs(), starts


def _padded_inputs(rows: Sequence[Sequence[int]], pad_id: int) -> dict[str, Tensor]:
    """Rows padded on the right, so that no position moves."""
    longest = max(map(len, rows))
    lengths = torch.tensor([len(row) for row in rows])
    return {
        "input_ids": torch.tensor([[*row, *[pad_id] * (longest - len(row))] for row in rows]),
        "attention_mask": (torch.arange(longest) < lengths[:, None]).long(),
    }
