"""What the benchmarks share: the machine, its matrix rate, the peak of memory, GSM8K's files."""

import os
import platform
import sys
import time
from pathlib import Path

import torch

_FILES = ("train.jsonl", "example_model_solutions.jsonl")


def need_data(folder: Path) -> None:
    """Leave, with a message, where GSM8K's files are not in the folder."""
    missing = [name for name in _FILES if not (folder / name).is_file()]
    if missing:
        sys.exit(f"--data {folder}: no {' and no '.join(missing)}. Name the folder that holds GSM8K's files.")


def describe_machine() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{name}, {os.cpu_count()} cores, {memory:.0f} GiB"


def matmul_rate(dtype: torch.dtype, device: torch.device) -> float:
    """FLOP/s of a product of 2048 × 2048 matrices: the best of several, which is what undisturbed work would reach."""
    left, right = (torch.randn(2048, 2048, dtype=dtype, device=device) for _ in range(2))
    best = float("inf")
    for _ in range(12):
        synchronise()
        began = time.perf_counter()
        left @ right
        synchronise()
        best = min(best, time.perf_counter() - began)
    return 2 * 2048**3 / best


def synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def reset_peak() -> int:
    """Begin to count the peak anew; returns the memory in use now, of the GPU where there is one."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    Path("/proc/self/clear_refs").write_text("5")  # the process's high-water mark: loading a model may leave a high one
    return _status("VmRSS")


def peak() -> int:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return _status("VmHWM")


def _status(key: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024
