"""The Ray cluster: connect to it or start one, and see what its nodes have."""

import contextlib
import ctypes
import ipaddress
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import ray
import ray._raylet
from ray._private import ray_constants
from ray.exceptions import RayError

from nlft_ray.errors import UserError
from nlft_ray.execution import process
from nlft_ray.execution.placement import carries

T = TypeVar("T")

_CORE_LOG_LEVEL = "_ZN3ray6RayLog19severity_threshold_E"  # ray::RayLog::severity_threshold_, an enumeration
_FATAL = 3  # of ray::RayLogLevel


def connect(address: str | None) -> None:
    """Use the cluster at `address`, or of RAY_ADDRESS or the running job; without any, start one on this machine.

    Raises:
        UserError: no cluster answers there.
    """
    if ray.is_initialized():
        return
    address = address or os.environ.get("RAY_ADDRESS")
    settings: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        _start(settings)
    else:
        try:
            ray.init(address=address, **settings)
        except (ConnectionError, RayError, RuntimeError) as error:
            raise UserError(f"ray_address: no Ray cluster answers at {address}: {error}") from error
    _quiet_core()


def connect_during(work: Callable[[], T], address: str | None) -> T:
    """The result of `work`, which runs while Ray starts: that is mostly waiting.

    Raises:
        UserError: no cluster answers at `address`; or as `work` raises it.
    """
    with ThreadPoolExecutor(1, "while-ray-starts") as thread:
        working = thread.submit(work)
        connect(address)
        return working.result()


def _start(settings: dict[str, Any]) -> None:
    """Start a cluster of this machine alone. It listens on loopback; Ray's own listens everywhere, so that others may
    join.

    Raises:
        UserError: it did not come up.
    """
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # for its processes
    # Ray makes its workers polite: then Ray's own processes, and whatever else runs, slow each of their steps.
    os.environ.setdefault("RAY_worker_niceness", "0")
    ray_constants.ENABLE_RAY_CLUSTER = False  # for this one, which has read it already
    try:
        # "local": a cluster that somebody has started here by `ray start` is used when it is asked for, as any other.
        ray.init("local", num_cpus=process.usable_cpus(), include_dashboard=False, **settings)
    except Exception as error:  # Ray's own type for it is Exception
        if "timed out during startup" not in str(error):
            raise
        raise UserError(
            "ray: no local cluster came up within Ray's half minute; the machine may be overloaded. "
            "Run the same command again: it continues where it stopped."
        ) from error
    if not ipaddress.ip_address(ray.util.get_node_ip_address()).is_loopback:
        ray.shutdown()
        raise RuntimeError(f"Ray {ray.__version__} does not keep a local cluster on loopback")


def _quiet_core() -> None:
    """Let Ray's C++ core print here only what ends this process, unless RAY_BACKEND_LOG_LEVEL says otherwise.

    Each actor of Ray Data makes it print a warning as an error. RAY_BACKEND_LOG_LEVEL would hide that from a user too,
    but is announced by a line of its own, and takes the cluster's log files along.
    """
    if "RAY_BACKEND_LOG_LEVEL" not in os.environ:
        # A release of Ray that names it otherwise prints what it prints.
        with contextlib.suppress(OSError, ValueError):
            ctypes.c_int.in_dll(ctypes.CDLL(ray._raylet.__file__), _CORE_LOG_LEVEL).value = _FATAL


def nodes_with(label_selector: Mapping[str, str]) -> list[dict[str, float]]:
    """Resources of every living node that the selector allows.

    Raises:
        UserError: the selector is not one.
    """
    try:  # Ray checks the options of a task that is never started as it checks all others
        ray.remote(label_selector=dict(label_selector))(lambda: None)
    except ValueError as error:
        raise UserError(f"label_selector: {error}") from error
    return [
        node["Resources"] for node in ray.nodes() if node["Alive"] and carries(node.get("Labels") or {}, label_selector)
    ]


def gpus_of_worker(wanted: float | None, nodes: Sequence[Mapping[str, float]]) -> float:
    """GPUs of one worker: those that are asked for, else one where the nodes have any."""
    if wanted is not None:
        return wanted
    return 1.0 if any(node.get("GPU", 0) > 0 for node in nodes) else 0.0


def user_error_in(error: BaseException | None) -> UserError | None:
    """The user's mistake inside an error that came through Ray; None where there is none."""
    while error is not None:
        cause = getattr(error, "cause", None)
        for candidate in (error, cause):
            if isinstance(candidate, UserError):
                return UserError(str(getattr(candidate, "cause", None) or candidate))
        error = error.__cause__ or error.__context__
    return None
