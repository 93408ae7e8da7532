"""Results on their way from a device: many small tensors in one transfer, which the host need not wait for."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor


def to_host(groups: Sequence[Mapping[str, Tensor]]) -> Callable[[], list[dict[str, NDArray[Any]]]]:
    """Begin to copy named tensors, of types of four bytes, to the host.

    Returns:
        What waits for them, and for nothing that the device was given to do later.
    """
    tensors = [tensor for group in groups for tensor in group.values()]
    device = tensors[0].device
    together = torch.cat([tensor.flatten().view(torch.float32).to(device) for tensor in tensors])
    host, ready = together, None
    if device.type == "cuda":
        host = torch.empty(together.shape, dtype=together.dtype, pin_memory=True)
        host.copy_(together, non_blocking=True)
        ready = torch.cuda.Event()
        ready.record(torch.cuda.current_stream(device))
    shapes = [{name: (tensor.shape, tensor.dtype) for name, tensor in group.items()} for group in groups]

    def read() -> list[dict[str, NDArray[Any]]]:
        if ready is not None:
            ready.synchronize()
        found: list[dict[str, NDArray[Any]]] = []
        start = 0
        for group in shapes:
            found.append({})
            for name, (shape, dtype) in group.items():
                part = host[start : start + shape.numel()]
                found[-1][name] = part.view(dtype).view(shape).numpy()
                start += shape.numel()
        return found

    return read
