"""Where workers may run, and how many of a size fit there: arithmetic over what Ray says about its nodes."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

_UNBOUNDED = 1_000_000


def carries(labels: Mapping[str, str], selector: Mapping[str, str]) -> bool:
    """Whether a node's labels meet a label selector: `value`, `!value`, `in(a, b)` or `!in(a, b)` for each key."""
    return all(_meets(labels.get(key), wanted) for key, wanted in selector.items())


def _meets(label: str | None, wanted: str) -> bool:
    refused, condition = wanted.startswith("!"), wanted.removeprefix("!")
    listed = re.fullmatch(r"in\((.*)\)", condition)
    values = [value.strip() for value in listed[1].split(",")] if listed else [condition]
    return (label in values) != refused


def largest_share(nodes: Sequence[Mapping[str, Any]], workers: int, gpus: float) -> int:
    """Most CPUs that each worker can have so that all of them fit; 1 where they do not fit at all."""
    most = max((int(node.get("CPU", 0)) for node in nodes), default=1)
    return next((cpus for cpus in range(most, 1, -1) if places(nodes, cpus, gpus) >= workers), 1)


def places(nodes: Sequence[Mapping[str, Any]], cpus: int, gpus: float) -> int:
    """Workers of a size that fit on nodes of these resources."""
    return sum(
        min(int(node.get("CPU", 0) // cpus), int(node.get("GPU", 0) // gpus) if gpus else _UNBOUNDED) for node in nodes
    )
