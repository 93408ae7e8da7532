"""Where Ray comes in: connect or start it, and spread shards over a pool of actors."""

import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any, TypeVar

import ray
import ray.data
from ray._private import ray_constants
from ray._private.label_utils import validate_label_selector
from ray.exceptions import RayError

from nlft_ray.config import PoolConfig, WithPool
from nlft_ray.errors import UserError
from nlft_ray.execution import process
from nlft_ray.execution.placement import carries, places
from nlft_ray.log import log
from nlft_ray.storage.folder import Folder
from nlft_ray.tables.shards import MakesWorker, Shard, ShardReport, Worker, finished_shard, work_shard

T = TypeVar("T")

_SHAPES_SHARDS = {"seed": 0, "responses_per_question": 1}  # settings that only some stages have, and their absence


def connect(address: str | None) -> None:
    """Use the cluster at `address`, or of RAY_ADDRESS or the running job; without any, start one on this machine.

    Raises:
        UserError: no cluster answers there.
    """
    if ray.is_initialized():
        return
    address = address or os.environ.get("RAY_ADDRESS")
    settings: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    # Ray Data's actors make Ray's core print a warning as an error, which a user could only wonder about.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    if address is None:
        _start(settings)
        return
    try:
        ray.init(address=address, **settings)
    except (ConnectionError, RayError, RuntimeError) as error:
        raise UserError(f"ray_address: no Ray cluster answers at {address}: {error}") from error


def connect_during(work: Callable[[], T], address: str | None) -> T:
    """What `work` returns, done while Ray starts, which is mostly waiting.

    Raises:
        UserError: no cluster answers at `address`; or as `work` raises it.
    """
    with ThreadPoolExecutor(1, "while-ray-starts") as thread:
        working = thread.submit(work)
        connect(address)
        return working.result()


def _start(settings: dict[str, Any]) -> None:
    """Start a cluster of this machine alone. It listens on loopback; Ray's own listens everywhere, so that others may
    join."""
    os.environ[ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR] = "0"  # for its processes
    # Ray makes its workers polite: then Ray's own processes, and whatever else runs, slow each of their steps.
    os.environ.setdefault("RAY_worker_niceness", "0")
    ray_constants.ENABLE_RAY_CLUSTER = False  # for this one, which has read it already
    try:
        # "local": a cluster that somebody has started here by `ray start` is used when it is asked for, as any other.
        ray.init("local", num_cpus=os.cpu_count(), include_dashboard=False, **settings)
    except Exception as error:  # Ray's own type for it is Exception
        if "timed out during startup" not in str(error):
            raise
        raise UserError(
            "ray: no local cluster came up within Ray's half minute; the machine may be overloaded. "
            "Run the same command again: it continues where it stopped."
        ) from error


def nodes_with(label_selector: Mapping[str, str]) -> list[dict[str, float]]:
    """Resources of every living node that the selector allows.

    Raises:
        UserError: the selector is not one.
    """
    if problem := validate_label_selector(dict(label_selector)):
        raise UserError(f"label_selector: {problem}")
    return [
        node["Resources"] for node in ray.nodes() if node["Alive"] and carries(node.get("Labels") or {}, label_selector)
    ]


def have_gpus(nodes: Sequence[Mapping[str, float]]) -> bool:
    return any(node.get("GPU", 0) > 0 for node in nodes)


def map_shards(
    worker: MakesWorker, config: WithPool, shards: Sequence[Shard], source: Folder, output: Folder, stage: str
) -> Iterator[ShardReport]:
    """Work on every shard, each by some actor of the pool; reports arrive in any order.

    An actor that dies is replaced and its shard done again. More actors start when nodes join. Only the shards' names
    travel through Ray: the rows go from file to actor to file, so the driver's memory does not grow with the table.

    Raises:
        UserError: as the worker raises it.
    """
    quiet_ray_data()
    gpus, size = _pool_of(config.pool, len(shards), stage)
    work = ray.data.from_items([asdict(shard) for shard in shards], override_num_blocks=len(shards)).map_batches(
        _ShardActor,
        fn_constructor_kwargs={
            "worker": worker,
            "config": config,
            "source": source,
            "output": output,
            "stage": stage,
        },
        batch_size=1,
        batch_format="pyarrow",
        compute=size,
        num_cpus=config.pool.cpus_per_worker,
        num_gpus=gpus,
        label_selector=config.pool.label_selector or None,
    )
    for row in work.iter_rows():
        result = json.loads(row["result"])
        if "user_error" in result:
            raise UserError(result["user_error"])
        yield ShardReport(**result["report"])


def user_error_in(error: BaseException | None) -> UserError | None:
    """The user's mistake inside an error that came through Ray, if that is what it is."""
    while error is not None:
        cause = getattr(error, "cause", None)
        for candidate in (error, cause):
            if isinstance(candidate, UserError):
                return UserError(str(getattr(candidate, "cause", None) or candidate))
        error = error.__cause__ or error.__context__
    return None


def quiet_ray_data() -> None:
    """Ray Data's own bars and logs would bury ours."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)


def _pool_of(pool: PoolConfig, shards: int, stage: str) -> tuple[float, ray.data.ActorPoolStrategy]:
    """GPUs of one actor, and how many actors: those that are asked for, or as many as find room now and later."""
    nodes = nodes_with(pool.label_selector)
    gpus = pool.gpus_per_worker
    gpus = (1.0 if have_gpus(nodes) else 0.0) if gpus is None else gpus
    room = places(nodes, pool.cpus_per_worker, gpus)
    if room == 0:
        where = f" with the labels {pool.label_selector}" if pool.label_selector else ""
        log(
            f"{stage}: no node{where} has room for a worker of {pool.cpus_per_worker} CPUs and {gpus:g} GPUs; "
            "waiting for nodes."
        )
    most = min(shards, pool.max_workers or shards)
    least = min(pool.min_workers, most)
    begin_with = most if pool.max_workers else min(max(room, least), most)
    return gpus, ray.data.ActorPoolStrategy(min_size=least, max_size=most, initial_size=begin_with)


class _ShardActor:
    """Holds one worker, with its model, for all the shards that this process is given."""

    def __init__(self, worker: MakesWorker, config: WithPool, source: Folder, output: Folder, stage: str):
        self._config, self._source, self._output, self._stage = config, source, output, stage
        self._worker: Worker | None = None
        self._mistake = ""
        try:
            with process.starting():
                import torch  # not needed on the driver

                torch.set_num_threads(config.pool.cpus_per_worker)
                self._worker = worker(config)
        except UserError as error:
            self._mistake = str(error)

    def __call__(self, batch: Any) -> dict[str, list[str]]:
        """Results as text: Arrow would merge the counts of reports, and Ray loses the type of an exception's cause."""
        return {"result": [json.dumps(self._result(Shard(**shard))) for shard in batch.to_pylist()]}

    def _result(self, shard: Shard) -> dict[str, Any]:
        if self._worker is None:
            return {"user_error": self._mistake}
        seed, draws = (getattr(self._config, name, default) for name, default in _SHAPES_SHARDS.items())
        try:
            # Ray runs a task again whose result was lost with a node; the file is there all the same.
            report = finished_shard(self._output, shard) or work_shard(
                self._worker, self._source, self._output, shard, self._stage, seed, draws
            )
        except UserError as error:
            return {"user_error": str(error)}
        return {"report": asdict(report)}
