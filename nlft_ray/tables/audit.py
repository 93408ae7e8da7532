"""The audit behind "exactly once": every input id is in the output or among the rejects, exactly once.

Half of it runs where a shard is worked on, before anything of it is committed (`check_shard`): what comes out has the
ids that went in. The other half runs on the driver (`digests_of_ids`): no id stands twice in the whole input, and the
input is the one that the shards were made from. Neither holds the ids of a table in memory.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from nlft_ray.errors import UserError

_NAMED = 5  # ids that a message names


def check_shard(place: str, ids_in: Sequence[str], ids_made: Sequence[str], draws: int) -> None:
    """Check that what a worker made of a shard has each input id once: in a row or a reject.

    Where several rows are drawn from each, they are `id/0`, `id/1`, …; an id rejected before that stands for itself.

    Raises:
        UserError: names ids that were lost, that stand twice, or that were not in the input.
    """
    counts = Counter(ids_made)
    twice = [id for id, count in counts.items() if count > 1]
    remaining, lost = set(counts), []
    for id in ids_in:
        drawn = {f"{id}/{draw}" for draw in range(draws)} if draws > 1 else {id}
        if drawn <= remaining:
            remaining -= drawn
        elif id in remaining:
            remaining.discard(id)
        else:
            lost.append(id)
    problems = [("lost", lost), ("there twice", twice), ("not from the input", sorted(remaining))]
    messages = [f"{len(ids)} {what}: {_names(ids)}" for what, ids in problems if ids]
    if messages:
        raise UserError(f"{place}: the audit of ids failed, and nothing of it was written. {'; '.join(messages)}.")


def digest(ids: Sequence[str]) -> str:
    """Short hash of a shard's ids and their order."""
    return hashlib.sha256("\0".join(ids).encode()).hexdigest()[:16]


def digests_of_ids(shards: Callable[[], Iterable[tuple[int, Sequence[str]]]]) -> dict[int, str]:
    """The digest of every shard's ids, by its number. `shards` yields numbers and ids; it may be called twice.

    Raises:
        UserError: names ids that stand in more than one row.
    """
    digests: dict[int, str] = {}
    hashes: list[Any] = []  # 8 bytes an id
    for number, ids in shards():
        digests[number] = digest(ids)
        hashes.append(np.fromiter(map(hash, ids), np.int64, len(ids)))
    every = np.concatenate([np.empty(0, np.int64), *hashes])
    hashes.clear()  # of 10⁹ ids they are 8 GB
    every.sort()
    suspects = set(every[1:][every[1:] == every[:-1]].tolist())
    if suspects:  # equal hashes are rare enough for a second look at the ids themselves
        counts = Counter(id for _, ids in shards() for id in ids if hash(id) in suspects)
        twice = [id for id, count in counts.items() if count > 1]
        if twice:
            raise UserError(
                f"input: {len(twice)} ids stand in more than one row: {_names(twice)}. An id names one row: "
                "`nlft-ray import` keeps the first of each."
            )
    return digests


def _names(ids: Sequence[str]) -> str:
    return ", ".join(repr(id) for id in ids[:_NAMED]) + (", …" if len(ids) > _NAMED else "")
