"""Work in this process, without Ray: one worker, shard after shard. A breakpoint stops where the work is done."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from nlft_ray.errors import UserError
from nlft_ray.execution.work import DeviceFailed, TableWork
from nlft_ray.tables.shards import Shard, ShardReport

T = TypeVar("T")


class InlineExecutor:
    """An executor in this process, with the threads that an actor would have: the table is the same, bit for bit."""

    def connect_during(self, work: Callable[[], T]) -> T:
        """The result of `work`; there is nothing to connect to."""
        return work()

    def has_gpus(self, work: TableWork) -> bool:
        """Whether this process has a GPU."""
        import torch  # not needed where everything is done already

        return torch.cuda.is_available()

    def map_shards(self, work: TableWork, shards: Sequence[Shard]) -> Iterator[ShardReport]:
        """Work on every shard, in order.

        Raises:
            UserError: as the worker raises it; or the device failed, which only another process can use again.
        """
        with _threads(work.config.pool.cpus_per_worker):
            worker = work.make_worker(work.config)
            for shard in shards:
                try:
                    yield work.on(worker, shard)
                except DeviceFailed as error:
                    raise UserError(
                        f"{work.stage}: the device failed at shard {shard.name} ({error}). Run the same command again: "
                        "it continues there."
                    ) from error


@contextmanager
def _threads(number: int) -> Iterator[None]:
    """Give torch this many threads for a while."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
