"""The devices that workers run on, all alike: the cluster as it is described, or this machine."""

import os
from dataclasses import dataclass
from typing import Literal

import torch

from nlft_ray.config import ClusterConfig
from nlft_ray.errors import UserError
from nlft_ray.execution.process import usable_cpus

GIB = 2**30
RUNTIME_BYTES = {"cpu": 650 * 2**20, "gpu": 600 * 2**20}
"""Bytes of a worker that has not loaded a model yet: the libraries in memory, or a CUDA context."""


@dataclass(frozen=True)
class Devices:
    """GPUs, or machines whose workers share the memory."""

    kind: Literal["gpu", "cpu"]
    count: int
    """GPUs, or machines."""
    memory: int
    """Bytes of each device."""
    cpus_per_node: int
    nodes: int
    reserve_fraction: float

    def usable(self, workers: int = 1) -> int:
        """Bytes that each of so many workers on one device has for models and data."""
        return int(self.memory * (1 - self.reserve_fraction)) // workers - RUNTIME_BYTES[self.kind]

    def __str__(self) -> str:
        each = f"{self.memory / GIB:.0f} GiB"
        machines = "1 machine" if self.nodes == 1 else f"{self.nodes} machines"
        if self.kind == "cpu":
            return f"{machines} of {self.cpus_per_node} CPU cores and {each}"
        return f"{self.count} GPU{'s' * (self.count > 1)} of {each} on {machines}"


def devices_of(cluster: ClusterConfig) -> Devices:
    """Devices of a cluster as it is described; this machine fills in what the description leaves open.

    Raises:
        UserError: neither the description nor this machine says how much memory a node has.
    """
    gpus, gpu_memory = cluster.gpus_per_node, int((cluster.gpu_memory_gib or 0) * GIB)
    if gpus is None and torch.cuda.is_available():
        gpus, gpu_memory = torch.cuda.device_count(), torch.cuda.get_device_properties(0).total_memory
    memory = gpu_memory if gpus else _node_memory(cluster)
    return Devices(
        kind="gpu" if gpus else "cpu",
        count=cluster.nodes * (gpus or 1),
        memory=memory,
        cpus_per_node=cluster.cpus_per_node or usable_cpus(),
        nodes=cluster.nodes,
        reserve_fraction=cluster.reserve_fraction,
    )


def _node_memory(cluster: ClusterConfig) -> int:
    if cluster.node_memory_gib:
        return int(cluster.node_memory_gib * GIB)
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError) as error:
        raise UserError("cluster.node_memory_gib: this system does not say how much memory it has; set it.") from error
