"""How often something was begun and not finished, so that work whose processes keep dying ends the command."""

from nlft_ray.errors import UserError
from nlft_ray.storage.folder import Folder
from nlft_ray.tables.shards import UNFINISHED, Shard

_MOST_AT_A_SHARD = 3
_MOST_AT_LOADING = 4
_ADVICE = "give a worker more memory: pool.gpus_per_worker, or fewer on a node by pool.max_workers"


class Attempts:
    """Small files of one start of a command, in the output's folder of unfinished work, which all its processes see.

    Ray itself starts a process that died again and again, without end.
    """

    def __init__(self, output: Folder, stage: str, start: str):
        """`start` names the start of the command: what an earlier one went through does not count."""
        self._folder, self._stage, self._start = output / UNFINISHED / "attempts", stage, start

    def begin_loading(self, actor: str) -> None:
        """Note that an actor begins to load its model.

        Raises:
            UserError: it was begun too often, each time by a process that died of it.
        """
        if self._begin(actor, _MOST_AT_LOADING) is not None:
            raise UserError(
                f"{self._stage}: {_MOST_AT_LOADING} processes in a row died while they loaded the model, killed "
                f"perhaps for want of memory. Take model.dtype=bfloat16, or {_ADVICE}; then run the same command "
                "again: it goes on where this one ended."
            )

    def loaded(self, actor: str) -> None:
        """Note that the actor has its model: what comes later is not of the loading."""
        for name in self._names(actor, _MOST_AT_LOADING):
            self._folder.delete(name)

    def begin(self, shard: Shard) -> None:
        """Note that work on a shard begins.

        Raises:
            UserError: it was begun too often, each time by a process that died of it.
        """
        reasons = self._begin(str(shard.number), _MOST_AT_A_SHARD)
        if reasons is not None:
            why = "; ".join(sorted(reasons)) or "none could say why, as when a machine runs out of memory"
            raise UserError(
                f"{self._stage}: {_MOST_AT_A_SHARD} processes died at shard {shard.name}, rows {shard.start + 1} to "
                f"{shard.stop} of {shard.file} in the input ({why}). Run the same command again: it goes on from "
                f"there. If it ends so again, look at these rows, and {_ADVICE}."
            )

    def failed(self, shard: Shard, reason: str) -> None:
        """Note why the process that began a shard last is about to end."""
        begun = [name for name in self._names(str(shard.number), _MOST_AT_A_SHARD) if self._folder.has(name)]
        if begun:
            self._folder.write_text(begun[-1], reason)

    def _begin(self, what: str, most: int) -> set[str] | None:
        """None, once the attempt is noted; where there were too many, the reasons why they failed."""
        names = self._names(what, most)
        for name in names:
            if not self._folder.has(name):
                self._folder.write_text(name, "")
                return None
        return {reason for name in names if (reason := self._folder.read_text(name))}

    def _names(self, what: str, most: int) -> list[str]:
        return [f"{self._start}-{what}-{attempt}" for attempt in range(1, most + 1)]
