"""Errors of the machine: told from those of rows, and answered with smaller batches."""

from collections.abc import Sequence

import pytest
import torch

from nlft_ray.errors import UserError
from nlft_ray.models.memory import Batches, is_device_failure, is_out_of_memory

HOST = RuntimeError(
    "[enforce fail at alloc_cpu.cpp:124] . DefaultCPUAllocator: can't allocate memory: you tried 8 bytes"
)


@pytest.mark.parametrize(
    ("error", "memory", "device"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True, False),
        (HOST, True, False),
        (MemoryError(), True, False),
        (torch.AcceleratorError("CUDA error: device-side assert triggered"), False, True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False, True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), False, True),
        (RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), False, True),
        (RuntimeError("shape '[2, 3]' is invalid for input of size 5"), False, False),
        (IndexError("index out of range in self"), False, False),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else str(value),
)
def test_whose_fault_an_error_is(error: Exception, memory: bool, device: bool) -> None:
    assert is_out_of_memory(error) == memory
    assert is_device_failure(error) == device


class Machine:
    """Doubles numbers, and has memory for so many of them at once."""

    def __init__(self, room: int):
        self.room = room
        self.sizes: list[int] = []

    def __call__(self, numbers: Sequence[int]) -> list[int]:
        self.sizes.append(sum(numbers))
        if sum(numbers) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return [2 * number for number in numbers]


def test_batches_are_halved_until_they_fit_and_stay_so(capsys: pytest.CaptureFixture[str]) -> None:
    batches, machine = Batches("numbers", "Take less."), Machine(room=10)
    assert batches.run([4] * 8, int, machine) == [8] * 8
    assert machine.sizes == [32, 16, 8, 8, 8, 8]
    machine.sizes.clear()
    assert batches.run([4, 4, 1, 2, 2], int, machine) == [8, 8, 2, 4, 4]
    assert max(machine.sizes) <= 8
    assert capsys.readouterr().err.count("out of memory with") == 2


def test_what_does_not_fit_alone_ends_with_advice() -> None:
    with pytest.raises(UserError, match=r"one of numbers alone, of 11 tokens .* Take less"):
        Batches("numbers", "Take less.").run([1, 11], int, Machine(room=10))


def test_other_errors_pass() -> None:
    def fail(numbers: Sequence[int]) -> list[int]:
        raise ValueError("no such number")

    with pytest.raises(ValueError, match="no such number"):
        Batches("numbers", "").run([1, 2], int, fail)
