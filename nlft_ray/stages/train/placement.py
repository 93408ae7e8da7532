"""How large a training worker is: its CPUs and GPUs."""

from collections.abc import Sequence
from typing import Any


def largest_share(nodes: Sequence[dict[str, Any]], workers: int, gpus: int) -> int:
    """Most CPUs that each worker can have so that all of them fit; 1 where they do not fit at all."""
    most = max((int(node.get("CPU", 0)) for node in nodes), default=1)
    return next((cpus for cpus in range(most, 1, -1) if places(nodes, cpus, gpus) >= workers), 1)


def places(nodes: Sequence[dict[str, Any]], cpus: int, gpus: int) -> int:
    """Workers of a size that fit on nodes of these resources."""
    return sum(
        min(int(node.get("CPU", 0) // cpus), int(node.get("GPU", 0) // gpus) if gpus else 1_000_000) for node in nodes
    )
