"""Many texts in one sequence, without padding, each token attending to its own text alone.

What texts begin with in common stands there once, a segment that others continue: causal attention makes its states the
same whatever follows, and the gradients of all that continues it add up in it. This is the layout; a model reads it by
`models.attention`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

Reads = tuple[slice, ...]
"""Parts of a pass's states that a token reads, in order of position. Stored states come before those of the pass."""


@dataclass(frozen=True)
class Segment:
    """n consecutive tokens: each attends to the tokens before it here, and to all that the segment continues."""

    own: slice
    """Where they stand among the N tokens of the pass."""
    reads: Reads
    """The parts that they read, T states in all: the n own ones are the last."""


class FlashIndices(NamedTuple):
    """The segments of a pass as torch's flash attention takes them: S queries' and keys' ends, on one device."""

    queries: Tensor
    """(S + 1,) int32, where each segment's queries begin, and the end of the last."""
    keys: Tensor
    """(S + 1,) int32, the same of the states that they read, one segment's behind the other's."""
    reads: Tensor | None
    """The places of those states; None where each segment reads its own alone."""
    most_queries: int
    most_keys: int


@dataclass(frozen=True, eq=False)
class Segments:
    """All segments of a pass, in order, which every layer is given; none of them is a tensor."""

    parts: tuple[Segment, ...]
    _indices: dict[torch.device, FlashIndices] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Segment]:
        return iter(self.parts)

    def indices(self, device: torch.device) -> FlashIndices:
        """Made and copied at the first layer of each device, without waiting for it."""
        if device not in self._indices:
            self._indices[device] = self._made_for(device)
        return self._indices[device]

    def _made_for(self, device: torch.device) -> FlashIndices:
        queries = [part.own.stop - part.own.start for part in self.parts]
        keys = [sum(read.stop - read.start for read in part.reads) for part in self.parts]
        reads = None
        if any(part.reads != (part.own,) for part in self.parts):
            read = [torch.arange(read.start, read.stop) for part in self.parts for read in part.reads]
            reads = to_device(torch.cat(read), device)
        query_ends, key_ends = (
            to_device(torch.tensor([0, *sizes]).cumsum(0).to(torch.int32), device) for sizes in (queries, keys)
        )
        return FlashIndices(query_ends, key_ends, reads, max(queries), max(keys))


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy of what the host has made; where the device is a GPU, the host does not wait for it."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


@dataclass
class PackedTexts:
    """N tokens, segment after segment; `stored` tokens that all of them continue have run before."""

    stored: int = 0
    ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    segments: list[Segment] = field(default_factory=list)

    @property
    def beginning(self) -> Reads:
        """The states that a text reads which continues the stored tokens alone."""
        return (slice(0, self.stored),) if self.stored else ()

    def append(self, tokens: Sequence[int], continued: Reads) -> Reads:
        """Add a segment that continues what `continued` reads; returns what a continuation of it reads."""
        own = slice(len(self.ids), len(self.ids) + len(tokens))
        seen = sum(part.stop - part.start for part in continued)
        self.ids.extend(tokens)
        self.positions.extend(range(seen, seen + len(tokens)))
        reads = (*continued, slice(own.start + self.stored, own.stop + self.stored))
        self.segments.append(Segment(own, reads))
        return reads

    def inputs(self) -> dict[str, Any]:
        """Arguments of the model's forward over (1, N) tokens."""
        return {
            "input_ids": torch.tensor([self.ids]),
            "position_ids": torch.tensor([self.positions]),
            "attention_mask": torch.empty(1, 1, 0, 0),  # given, so that none is made; not read
            "segments": Segments(tuple(self.segments)),
        }


def moved(inputs: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """A model's arguments on a device."""

    def move(value: Any) -> Any:
        if isinstance(value, dict):
            return moved(value, device)
        if isinstance(value, list):
            return [move(part) for part in value]
        return to_device(value, device) if isinstance(value, Tensor) else value

    return {name: move(value) for name, value in inputs.items()}
