"""A cluster of several nodes on this machine, whose labels make pools, and its record of what ran where."""

import contextlib
import os
import signal
from collections.abc import Iterator
from typing import Any

from ray.cluster_utils import Cluster

from tests.clusters.job_cluster import free_port

SCORING_ACTOR, TRAINING_WORKER = "_ShardActor", "RayTrainWorker"
"""What the actors that do the work are called in the cluster's records."""

_SYSTEM = {
    "worker_niceness": 0,  # Ray's workers are polite: on a busy machine they would wait for everything else
    # quick to notice that a node is dead
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 1000,
    "health_check_timeout_ms": 3000,
    "health_check_failure_threshold": 3,
}


class Pools:
    """A head without CPUs, and the nodes that are added."""

    def __init__(self) -> None:
        head = {"num_cpus": 0, "include_dashboard": True, "dashboard_port": free_port(), "labels": {"pool": "head"}}
        self._cluster: Any = Cluster(initialize_head=True, head_node_args=head | {"_system_config": _SYSTEM})
        self.address: str = self._cluster.address
        self._nodes: dict[str, Any] = {"head": self._cluster.head_node}

    def add(self, name: str, pool: str, cpus: int = 1) -> None:
        """A node of the pool, with a resource of its own beside its label."""
        self._nodes[name] = self._cluster.add_node(num_cpus=cpus, labels={"pool": pool}, resources={name: 1})

    def kill(self, name: str) -> None:
        """SIGKILL for the raylet; workers end when they notice."""
        self._nodes[name].kill_raylet()

    @contextlib.contextmanager
    def held_still(self, names: list[str], kind: str) -> Iterator[None]:
        """Workers of these nodes do nothing for a while."""
        nodes, actors = self._names(), self._alive(kind)
        pids = [actor["Pid"] for actor in actors if nodes.get(actor["Address"]["NodeID"]) in names]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    def actors(self, kind: str) -> set[str]:
        """Ids of all that there were."""
        return set(self._actors(kind))

    def nodes_of(self, kind: str, since: set[str]) -> set[str]:
        """Nodes that actors were last placed on, of dead actors too; those known before, `since`, are left out."""
        names = self._names()
        nodes = {actor["Address"]["NodeID"] for id, actor in self._actors(kind).items() if id not in since}
        return {names[node] for node in nodes & names.keys()}

    def alive(self, kind: str) -> int:
        return len(self._alive(kind))

    def _alive(self, kind: str) -> list[dict[str, Any]]:
        return [actor for actor in self._actors(kind).values() if actor["State"] == "ALIVE"]

    def _names(self) -> dict[str, str]:
        return {node.node_id: name for name, node in self._nodes.items()}

    def _actors(self, kind: str) -> dict[str, dict[str, Any]]:
        table = self._cluster.global_state.actor_table(None)
        return {id: actor for id, actor in table.items() if kind in actor["ActorClassName"]}

    def shut_down(self) -> None:
        self._cluster.shutdown()
