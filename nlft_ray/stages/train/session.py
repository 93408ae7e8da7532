"""What the training loop needs of whatever runs it: which worker it is, and where checkpoints go and come from."""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol


class Session(Protocol):
    """One worker of a training whose process group (torch.distributed) already stands."""

    rank: int
    world_size: int

    def latest_checkpoint(self) -> AbstractContextManager[Path | None]:
        """The folder of the newest checkpoint, the files of all workers in it; None at the first start."""

    def save_checkpoint(self, folder: Path, step: int) -> None:
        """Keep this worker's part of a checkpoint. Every worker calls it at the same steps; it waits for the others."""
