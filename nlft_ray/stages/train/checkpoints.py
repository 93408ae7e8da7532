"""Checkpoints: each a folder of files that counts only once it is complete, written while training goes on.

    checkpoints/step-00000020-5f0c9a31/
        part-00000-of-00002.safetensors   states by name (see engine.py), each parameter in one of the parts
        part-00001-of-00002.safetensors   every worker writes one
        metrics.jsonl                     the record of the steps so far
        checkpoint.json                   written last: complete

Whoever is killed leaves a folder without its last file, which is deleted at the next start. The name ends with that of
the start which wrote it, so parts of two starts never mix.
"""

import json
import re
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Self

import torch.distributed as dist
from torch import Tensor

from nlft_ray.errors import UserError
from nlft_ray.stages.train.engine import STATES, Engine, parameter_size
from nlft_ray.storage.folder import Folder
from nlft_ray.tables.training import METRICS

CHECKPOINTS = "checkpoints"
"""Their folder within a training's output."""
_COMPLETE = "checkpoint.json"
_NAME = re.compile(r"step-(\d+)-[0-9a-f]+")


@dataclass(frozen=True)
class Progress:
    """The progress of a training: all that a resumed one needs besides the states."""

    steps_done: int
    seed: int
    """Order of examples and random numbers follow from it and from the step."""
    optimizer_steps: int
    metrics: list[dict[str, Any]]
    """The record of the steps done, oldest first."""

    @classmethod
    def at_start(cls, seed: int) -> Self:
        return cls(steps_done=0, seed=seed, optimizer_steps=0, metrics=[])


def newest_step(folder: Folder) -> int:
    """Steps done when the newest complete checkpoint was taken; 0 where there is none."""
    return max((int(_NAME.fullmatch(name)[1]) for name in _complete(folder)), default=0)  # type: ignore[index]


def _complete(folder: Folder) -> list[str]:
    """Names of complete checkpoints, oldest first."""
    names = [name for name in folder.entries() if _NAME.fullmatch(name)]
    return sorted(name for name in names if (folder / name).has(_COMPLETE))


class Checkpoints:
    """The checkpoints of one training, for one of its workers. All workers call the same methods in the same order.

    Messages between workers go through a process group of its own, since they are sent while the other trains.
    """

    def __init__(self, folder: Folder, keep: int):
        self._folder, self._keep = folder, keep
        self._group: Any = dist.new_group(backend="gloo")
        self._rank, self._workers = dist.get_rank(), dist.get_world_size()
        self._start = self._broadcast(uuid.uuid4().hex[:8])
        self._thread = ThreadPoolExecutor(1, "checkpoints")
        self._writing: Future[None] | None = None

    def restore(self, engine: Engine) -> Progress | None:
        """Bring the engine to where the newest checkpoint was taken; None where there is none.

        The number of workers and the ZeRO stage may be other ones than they were.
        """
        with self.all_or_none(f"the checkpoints in {self._folder} cannot be read"):
            newest = self._newest() if self._rank == 0 else None
        name = self._broadcast(newest)
        if name is None:
            return None
        folder = self._folder / name
        with ExitStack() as stack:
            with self.all_or_none(f"the checkpoint {folder} cannot be read"):
                record = json.loads(folder.read_text(_COMPLETE))
                metrics = [json.loads(line) for line in folder.read_text(METRICS).splitlines()]
                states = stack.enter_context(_open_parts(folder, record.pop("parts")))
            engine.set_states(states, record["optimizer_steps"])
        return Progress(**record, metrics=metrics)

    def save(self, engine: Engine, steps_done: int, seed: int, metrics: list[dict[str, Any]]) -> None:
        """Take a checkpoint of this moment. It is copied here and written later, by another thread.

        Raises:
            UserError: the checkpoint before this one could not be written, on any worker.
        """
        self.finish()
        tensors = self._own_share(engine)
        progress = Progress(steps_done, seed, engine.optimizer_steps, list(metrics))
        self._writing = self._thread.submit(self._write, tensors, progress)

    def finish(self) -> None:
        """Wait until what was begun is written.

        Raises:
            UserError: it could not be, on any worker.
        """
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    def _own_share(self, engine: Engine) -> dict[str, Tensor]:
        """Copies of the states that this worker writes: about as many bytes as the others."""
        loads, owner = [0] * self._workers, {}
        for name, parameter in engine.trained_parameters().items():
            owner[name] = loads.index(min(loads))
            loads[owner[name]] += parameter_size(parameter)
        return {
            f"{kind}/{name}": tensor.to("cpu", copy=True).contiguous()
            for name, states in engine.gather_states()
            if owner[name] == self._rank
            for kind, tensor in states.items()
        }

    def _write(self, tensors: Mapping[str, Tensor], progress: Progress) -> None:
        folder = self._folder / f"step-{progress.steps_done:08d}-{self._start}"
        parts = [f"part-{worker:05d}-of-{self._workers:05d}.safetensors" for worker in range(self._workers)]
        with self.all_or_none(f"the checkpoint {folder} cannot be written"):
            _write_part(folder, parts[self._rank], tensors)
        with self.all_or_none(f"the checkpoint {folder} cannot be written"):
            if self._rank == 0:
                record = asdict(progress) | {"parts": parts}
                metrics = record.pop("metrics")
                folder.write_text(METRICS, "".join(json.dumps(line) + "\n" for line in metrics))
                folder.write_text(_COMPLETE, json.dumps(record))
                for name in _complete(self._folder)[: -self._keep]:
                    _delete(self._folder / name)

    def _newest(self) -> str | None:
        """The newest complete checkpoint. Deletes what was begun and never finished."""
        complete = _complete(self._folder)
        for name in set(self._folder.entries()) - set(complete):
            (self._folder / name).remove()
        return complete[-1] if complete else None

    def _broadcast(self, value: Any) -> Any:
        values = [value]
        dist.broadcast_object_list(values, src=0, group=self._group)
        return values[0]

    @contextmanager
    def all_or_none(self, problem: str) -> Iterator[None]:
        """Make a failure of one worker one of all, with the same words: none waits for another that is gone."""
        mine: Exception | None = None
        try:
            yield
        except Exception as error:
            mine = error
        failures: list[tuple[bool, str] | None] = [None] * self._workers
        dist.all_gather_object(failures, mine and (isinstance(mine, UserError), str(mine)), group=self._group)
        for failure in failures:
            if failure:
                is_users, text = failure
                raise UserError(text) if is_users else RuntimeError(f"{problem}: {text}")


@contextmanager
def _open_parts(folder: Folder, names: Sequence[str]) -> Iterator[Callable[[str], dict[str, Tensor]]]:
    """A function that gives a parameter's states by its name."""
    from safetensors import safe_open

    with folder.local_files(names) as local, ExitStack() as stack:
        files: dict[str, Any] = {}
        for name in names:
            file = stack.enter_context(safe_open(local / name, framework="pt"))
            files |= dict.fromkeys(file.keys(), file)
        yield lambda name: {kind: files[f"{kind}/{name}"].get_tensor(f"{kind}/{name}") for kind in STATES}


def _write_part(folder: Folder, name: str, tensors: Mapping[str, Tensor]) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with folder.atomic_file(name) as path:
        try:
            save_file(dict(tensors), path)
        except SafetensorError as error:
            number = re.search(r"os error (\d+)", str(error))
            raise OSError(int(number[1]), str(error)) if number else error from error


def _delete(folder: Folder) -> None:
    """The file that says complete goes first, so that half a checkpoint is never taken for a whole one."""
    folder.delete(_COMPLETE)
    folder.remove()
