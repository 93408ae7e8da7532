"""A gang: processes of one node that hold a model together and work in step, for tensor parallelism.

An actor of the pool asks Ray for the CPUs and GPUs of all of them, so that they find room on one node or not at all,
and starts the members there. It takes no part in their passes: where a member is lost, the others wait for it in a
collective operation, but the actor does not. It ends and takes them along; Ray starts it anew, and its shard is done
again.
"""

import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from nlft_ray.config.shared import PoolConfig
from nlft_ray.errors import UserError
from nlft_ray.execution import process
from nlft_ray.execution.work import DeviceFailed
from nlft_ray.log import log

_PATIENCE_SECONDS = 60.0
"""Seconds after which members that have not raised what one has raised will never do so: they wait for it."""
_LOADING = timedelta(hours=2)
"""Time that members may be apart. They load weights at different speeds; a lost one is noticed at once all the same."""


class Gang:
    """Stands for an object of which every member holds one: a method that is called here runs in all of them, with the
    same arguments, and what the first returns comes back.

    Where all members raise, so does the call, and they stay in step. Else they end.

    Raises:
        UserError: as members raise it; or one has no memory for what it is asked.
        DeviceFailed: a member was lost, or raised alone.
    """

    def __init__(self, pool: PoolConfig, make: Callable[..., Any], arguments: Sequence[Any]):
        here = ray.get_runtime_context()
        gpus = here.get_accelerator_ids().get("GPU") or [""] * pool.tensor_parallel
        self._folder = tempfile.TemporaryDirectory(prefix="nlft-ray-gang-")
        rendezvous = Path(self._folder.name) / "rendezvous"
        same_node = NodeAffinitySchedulingStrategy(here.get_node_id(), soft=False)
        member = ray.remote(_Member).options(num_cpus=0, scheduling_strategy=same_node)
        self._members: list[Any] = [
            member.remote(rank, gpus[: pool.tensor_parallel], pool.cpus_per_worker, rendezvous)
            for rank in range(pool.tensor_parallel)
        ]
        try:
            self._in_step("make", make, ray.put(arguments))
        except DeviceFailed as error:
            log(f"tensor_parallel: {error} while it was loaded.")
            os._exit(1)  # as a process does that dies while it loads: Ray starts it anew

    def __getattr__(self, method: str) -> Callable[..., Any]:
        return partial(self._call, method)

    def _call(self, method: str, *arguments: Any) -> Any:
        return self._in_step("call", method, ray.put(arguments))

    def _in_step(self, what: str, *arguments: Any) -> Any:
        """The first member's result of what all of them do, or their error."""
        calls = [getattr(member, what).remote(*arguments) for member in self._members]
        raised: list[Exception] = []
        waiting = calls
        while waiting:
            done, waiting = ray.wait(waiting, timeout=_PATIENCE_SECONDS if raised else None)
            if not done:
                break
            raised += [error for error in map(self._error_of, done) if error is not None]
        if raised:
            raise self._error_of_all(raised)
        return ray.get(calls[0])

    def _error_of(self, call: Any) -> Exception | None:
        """What a member raised, as it raised it; None where it did what it should.

        Raises:
            DeviceFailed: the member was lost.
        """
        try:
            ray.get(call)
        except RayTaskError as error:
            return error.cause if isinstance(error.cause, Exception) else error
        except RayActorError as error:
            if error.actor_init_failed:
                return RuntimeError(str(error))
            self._dissolve()
            raise DeviceFailed(f"one of {len(self._members)} processes that share the model was lost") from None
        return None

    def _error_of_all(self, raised: Sequence[Exception]) -> Exception:
        """The error that the call ends with, after which the members are in step or gone."""
        from nlft_ray.models.memory import is_out_of_memory  # imports torch

        error = next((error for error in raised if isinstance(error, UserError)), raised[0])
        one_line = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        if any(map(is_out_of_memory, raised)):
            error = UserError(
                f"out of memory in one of {len(self._members)} processes that share the model ({one_line}): take a "
                "smaller batch (max_tokens_per_batch, or batch_size where text is generated), or a larger "
                "pool.tensor_parallel."
            )
        elif not isinstance(error, UserError) and len(raised) < len(self._members):
            error = DeviceFailed(f"{len(raised)} of {len(self._members)} processes raised {one_line}")
        if isinstance(error, UserError | DeviceFailed):
            self._dissolve()
        return error

    def _dissolve(self) -> None:
        for member in self._members:
            ray.kill(member)
        self._folder.cleanup()


class _Member:
    """A process of a gang, which does what the gang asks of all. It has one GPU, or none."""

    def __init__(self, rank: int, gpus: Sequence[str], threads: int, rendezvous: Path):
        """`gpus` are the members' in order of rank, empty names where they work on CPUs."""
        on_gpu = bool(gpus[rank])
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus[rank]  # before torch looks for devices
        for backend in ("GLOO", "NCCL"):  # they are all on this node
            os.environ.setdefault(f"{backend}_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
        with process.starting():
            import torch
        if on_gpu:
            process.check_gpus("pool.gpus_per_worker")
        torch.set_num_threads(threads)
        torch.distributed.init_process_group(
            "nccl" if on_gpu else "gloo",
            init_method=f"file://{rendezvous}",
            rank=rank,
            world_size=len(gpus),
            timeout=_LOADING,
            device_id=torch.device("cuda", 0) if on_gpu else None,
        )
        self._answers = rank == 0
        self._held: Any = None

    def make(self, make: Callable[..., Any], arguments: Sequence[Any]) -> None:
        """Make the object that this process holds."""
        self._held = make(*arguments)

    def call(self, method: str, arguments: Sequence[Any]) -> Any:
        """Call a method of it; the first member alone hands the result on."""
        result = getattr(self._held, method)(*arguments)
        return result if self._answers else None
