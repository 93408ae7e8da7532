"""How often a shard was begun and not finished, so that one whose processes keep dying ends the command."""

from nlft_ray.errors import UserError
from nlft_ray.storage.folder import Folder
from nlft_ray.tables.shards import UNFINISHED, Shard

MOST_ATTEMPTS = 3


class Attempts:
    """Small files of one start of a command, in the output's folder of unfinished work, which all its processes see."""

    def __init__(self, output: Folder, start: str):
        """`start` names the start of the command: what an earlier one went through does not count."""
        self._folder = output / UNFINISHED / "attempts"
        self._start = start

    def begin(self, stage: str, shard: Shard) -> None:
        """Note that work on a shard begins.

        Raises:
            UserError: it was begun too often, each time by a process that died of it.
        """
        names = [f"{self._start}-{shard.number}-{attempt}" for attempt in range(1, MOST_ATTEMPTS + 1)]
        for name in names:
            if not self._folder.has(name):
                self._folder.write_text(name, "")
                return
        reasons = {reason for name in names if (reason := self._folder.read_text(name))}
        why = "; ".join(sorted(reasons)) or "none could say why, as when a machine runs out of memory"
        raise UserError(
            f"{stage}: {MOST_ATTEMPTS} processes died at shard {shard.name}, rows {shard.start + 1} to {shard.stop} of "
            f"{shard.file} in the input ({why}). Run the same command again: it goes on from there. If it ends so "
            "again, look at these rows, and give a worker more memory: pool.gpus_per_worker, or fewer on a node by "
            "pool.max_workers."
        )

    def failed(self, shard: Shard, reason: str) -> None:
        """Note why the process that began a shard last is about to end."""
        names = [f"{self._start}-{shard.number}-{attempt}" for attempt in range(1, MOST_ATTEMPTS + 1)]
        begun = [name for name in names if self._folder.has(name)]
        if begun:
            self._folder.write_text(begun[-1], reason)
