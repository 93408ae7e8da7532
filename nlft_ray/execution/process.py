"""The start of a process that is ours alone. (A runtime environment would have Ray start each worker twice.)"""

import atexit
import gc
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread

from nlft_ray.errors import UserError

_CGROUP = Path("/sys/fs/cgroup")
_ALLOCATOR_SETTINGS = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")
"""Variables that torch's allocator reads, the older names too: a user who set one has chosen."""


@contextmanager
def starting() -> Iterator[None]:
    """Make Python's garbage collector rare for as long as torch, transformers or Ray are imported.

    They make a million objects that stay. Looking through these again and again, as it does by default, takes the
    collector a fifth of the time of the import, and more than a second when the process ends: for its end they are
    frozen. Tokenizers' own threads are turned off for good, since processes share the cores.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if not any(name in os.environ for name in _ALLOCATOR_SETTINGS):
        os.environ["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"  # passes differ in shape: less is wasted
    atexit.register(gc.freeze)
    thresholds = gc.get_threshold()
    gc.set_threshold(10_000)
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)


@contextmanager
def in_background(work: Callable[[Event], None]) -> Iterator[None]:
    """Within, a thread does `work`, which ends soon after its event is set: on leaving, that is waited for."""
    stopped = Event()
    thread = Thread(target=work, args=(stopped,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()


def hide_gpus() -> None:
    """Keep this process off GPUs that it was not given, before torch looks for them: Ray does not."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""


def check_gpus(setting: str) -> None:
    """Check that torch can use the GPU that Ray gave this process; it would run on the CPU without a word.

    Args:
        setting: the setting that says how many GPUs a worker has.

    Raises:
        UserError: it cannot.
    """
    import torch

    if torch.cuda.is_available():
        return
    driver = Path("/proc/driver/nvidia/version")
    version = driver.read_text().splitlines()[0] if driver.is_file() else "no driver of NVIDIA's is loaded"
    raise UserError(
        f"{setting}: Ray gave this worker a GPU that torch {torch.__version__} (built for CUDA {torch.version.cuda}) "
        f"cannot use; {version}. Install a torch that fits the driver, or set {setting}=0 to run on CPUs."
    )


def usable_cpus() -> int:
    """CPUs that this process may use: of the machine's, those that its affinity and its control group leave it."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(allowed, _cgroup_cpus(_CGROUP)))


def _cgroup_cpus(root: Path) -> int:
    """CPUs' worth of time that a control group gives, rounded up; all where it sets no limit."""
    try:
        if (root / "cpu.max").is_file():  # version 2
            quota, period = (root / "cpu.max").read_text().split()
        else:
            quota, period = ((root / "cpu" / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
        limit = math.ceil(int(quota) / int(period))
    except (OSError, ValueError):  # "max" is no number: no limit
        return os.cpu_count() or 1
    return limit if limit > 0 else os.cpu_count() or 1
