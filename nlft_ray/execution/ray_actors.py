"""Work on a Ray cluster: shards spread over a pool of Ray Data actors, one worker each."""

import json
import logging
import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, TypeVar

import ray
import ray.data

from nlft_ray.errors import UserError
from nlft_ray.execution import process, ray_cluster
from nlft_ray.execution.attempts import Attempts
from nlft_ray.execution.placement import places
from nlft_ray.execution.work import DeviceFailed, TableWork, Worker
from nlft_ray.log import log
from nlft_ray.tables.shards import Shard, ShardReport, finished_shard

T = TypeVar("T")


class RayExecutor:
    """An executor on the Ray cluster at `address` (see `ray_cluster.connect`)."""

    def __init__(self, address: str | None):
        self._address = address

    def connect_during(self, work: Callable[[], T]) -> T:
        """The result of `work`, which runs while Ray starts.

        Raises:
            UserError: no cluster answers; or as `work` raises it.
        """
        return ray_cluster.connect_during(work, self._address)

    def has_gpus(self, work: TableWork) -> bool:
        """Whether workers will have GPUs, by what the cluster has.

        Raises:
            UserError: no cluster answers, or the label selector is not one.
        """
        ray_cluster.connect(self._address)
        return _gpus_of_actor(work, ray_cluster.nodes_with(work.config.pool.label_selector)) > 0

    def map_shards(self, work: TableWork, shards: Sequence[Shard]) -> Iterator[ShardReport]:
        """Work on every shard, each by some actor of the pool; reports arrive in any order.

        An actor that dies is replaced and its shard done again, though not for ever (see `Attempts`). More actors start
        when nodes join. Only the shards' names travel through Ray: the rows go from file to actor to file, so the
        driver's memory does not grow with the table.

        Raises:
            UserError: as the worker raises it.
        """
        ray_cluster.connect(self._address)
        _configure_ray_data()
        pool = work.config.pool
        gpus, size = _size_pool(work, len(shards))
        results = ray.data.from_items([asdict(shard) for shard in shards], override_num_blocks=len(shards)).map_batches(
            _ShardActor,
            fn_constructor_kwargs={"work": work, "gpus": gpus},
            batch_size=1,
            batch_format="pyarrow",
            compute=size,
            num_cpus=pool.cpus_per_worker * work.processes,
            num_gpus=gpus,
            label_selector=pool.label_selector or None,
        )
        for row in results.iter_rows():
            result = json.loads(row["result"])
            if "user_error" in result:
                raise UserError(result["user_error"])
            yield ShardReport(**result["report"])


def _configure_ray_data() -> None:
    """Turn off Ray Data's own bars and logs, which would bury ours, and have a pool grow when all its actors work."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.autoscaling_config.actor_pool_util_upscaling_threshold = 1.0  # shards at work, over actors
    logging.getLogger("ray.data").setLevel(logging.ERROR)


def _gpus_of_actor(work: TableWork, nodes: Sequence[Mapping[str, float]]) -> float:
    wanted = work.config.pool.gpus_per_worker
    return ray_cluster.gpus_of_worker(wanted, nodes) * work.processes if work.loads_model else wanted or 0.0


def _size_pool(work: TableWork, shards: int) -> tuple[float, ray.data.ActorPoolStrategy]:
    """GPUs of one actor, and how many actors: those that are asked for, or as many as find room now and later."""
    pool = work.config.pool
    nodes = ray_cluster.nodes_with(pool.label_selector)
    cpus, gpus = pool.cpus_per_worker * work.processes, _gpus_of_actor(work, nodes)
    room = places(nodes, cpus, gpus)
    if room == 0:
        where = f" with the labels {pool.label_selector}" if pool.label_selector else ""
        log(f"{work.stage}: no node{where} has room for a worker of {cpus} CPUs and {gpus:g} GPUs; waiting for nodes.")
    most = min(shards, pool.max_workers or shards)
    least = min(pool.min_workers, most)
    initial = most if pool.max_workers else min(max(room, least), most)
    # One shard at a time for each: Ray Data would let an actor that starts early queue up what late ones could do.
    size = ray.data.ActorPoolStrategy(
        min_size=least, max_size=most, initial_size=initial, max_tasks_in_flight_per_actor=1
    )
    return gpus, size


class _ShardActor:
    """An actor that holds one worker, with its model, for all the shards that its process is given."""

    def __init__(self, work: TableWork, gpus: float):
        self._work = work
        self._attempts = Attempts(work.output, work.stage, work.start)
        self._worker: Worker | None = None
        self._mistake = ""
        if not gpus:
            process.hide_gpus()
        actor = str(ray.get_runtime_context().get_actor_id())
        try:
            self._attempts.begin_loading(actor)
            self._worker = _load(work, gpus)
            self._attempts.loaded(actor)
        except UserError as error:
            self._mistake = str(error)

    def __call__(self, batch: Any) -> dict[str, list[str]]:
        """Results as text: Arrow would merge the counts of reports, and Ray loses the type of an exception's cause."""
        return {"result": [json.dumps(self._result(Shard(**shard))) for shard in batch.to_pylist()]}

    def _result(self, shard: Shard) -> dict[str, Any]:
        if self._worker is None:
            return {"user_error": self._mistake}
        try:
            # Ray runs a task again whose result was lost with a node; the file is there all the same.
            report = finished_shard(self._work.output, shard) or self._work_on(self._worker, shard)
        except UserError as error:
            return {"user_error": str(error)}
        return {"report": asdict(report)}

    def _work_on(self, worker: Worker, shard: Shard) -> ShardReport:
        """The shard's report. Where the device fails, this process ends, and Ray has another do the shard."""
        self._attempts.begin(shard)
        try:
            return self._work.on(worker, shard)
        except DeviceFailed as error:
            self._attempts.failed(shard, f"on {platform.node()}: {error}")
            os._exit(1)


def _load(work: TableWork, gpus: float) -> Worker:
    """The worker, with its model.

    Raises:
        UserError: as the worker raises it; torch cannot use the GPU; or memory does not hold the model.
    """
    with process.starting():
        import torch  # not needed on the driver

    if gpus:
        process.check_gpus("pool.gpus_per_worker")
    torch.set_num_threads(work.config.pool.cpus_per_worker)
    try:
        with process.starting():
            return work.make_worker(work.config)
    except (RuntimeError, MemoryError) as error:
        from nlft_ray.models.memory import is_out_of_memory

        if not is_out_of_memory(error):
            raise
        raise UserError(
            f"model.path: out of memory while {work.stage} loaded the model ({' '.join(str(error).split())[:200]}). "
            "Take model.dtype=bfloat16, or more GPUs for a worker: pool.gpus_per_worker."
        ) from error
