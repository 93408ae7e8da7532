"""Errors of the machine that are no row's fault: memory that runs out, and a device that fails."""

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from nlft_ray.errors import UserError
from nlft_ray.log import log

Item = TypeVar("Item")
Result = TypeVar("Result")

_NO_HOST_MEMORY = ("DefaultCPUAllocator", "not enough memory")
_DEVICE_FAILED = ("CUDA error", "CUBLAS_STATUS", "cuDNN error", "CUDNN_STATUS", "NCCL error", "device-side assert")


class EngineFailed(RuntimeError):
    """A process that runs the model for this one has ended, and answers nothing any more."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device, or the host, has no memory for a tensor."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_HOST_MEMORY)


def is_device_failure(error: BaseException) -> bool:
    """Whether an error is of the device: every later call of this process may fail too, whatever it is about."""
    if is_out_of_memory(error):
        return False
    if isinstance(error, torch.AcceleratorError | EngineFailed):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _DEVICE_FAILED)


@dataclass
class Batches:
    """Work on as many items at once as memory holds: halved where it runs out, and no larger again."""

    what: str
    """What the items are, for the one line that says so."""
    advice: str
    """What to change where a single item does not fit."""
    halves: bool = True
    """Off where other processes work in step on the same items, which would not halve them."""
    largest: float = float("inf")
    """Size that has not been too much so far."""

    def run(
        self, items: Sequence[Item], size: Callable[[Item], int], work: Callable[[Sequence[Item]], Sequence[Result]]
    ) -> list[Result]:
        """The results of `work` on all items, in order; a part of them at a time where all are too many.

        Args:
            size: tokens of an item, or whatever memory grows with.

        Raises:
            UserError: a single item does not fit.
        """
        total = sum(map(size, items))
        if len(items) > 1 and total > self.largest:
            return self._halves(items, size, work)
        try:
            return list(work(items))
        except (RuntimeError, MemoryError) as error:
            if not self.halves or not is_out_of_memory(error):
                raise
            problem = " ".join(str(error).split())[:200]
        # Outside of the handler: what it held, the tensors of the pass among them, is free by now.
        free_memory()
        if len(items) == 1:
            raise UserError(
                f"out of memory with one of {self.what} alone, of {total} tokens ({problem}). {self.advice}"
            )
        if total / 2 < self.largest:
            self.largest = total / 2
            log(f"out of memory with {total} tokens of {self.what} at once; from now on at most {total // 2}.")
        return self._halves(items, size, work)

    def _halves(
        self, items: Sequence[Item], size: Callable[[Item], int], work: Callable[[Sequence[Item]], Sequence[Result]]
    ) -> list[Result]:
        middle = len(items) // 2
        return self.run(items[:middle], size, work) + self.run(items[middle:], size, work)


def free_memory() -> None:
    """Give back what Python and the device's allocator keep without need."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
