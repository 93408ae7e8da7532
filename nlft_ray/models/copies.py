"""Models that lie in a store, copied to this machine: transformers reads local folders only."""

import fcntl
import hashlib
import json
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub.constants import HF_HOME

from nlft_ray.errors import UserError
from nlft_ray.storage.folder import Folder

COPIES = Path(HF_HOME) / "nlft-ray"
"""Folder of the copies, beside the hub's own cache. It is a cache too: delete it when no stage runs."""


def local_copy(folder: Folder, patterns: Sequence[str]) -> Path:
    """A local copy of a store's folder, of the files that match. It is copied once, for all processes here.

    A folder that was changed in the store is copied anew; sizes and times tell.

    Raises:
        UserError: there is no such folder.
    """
    files = [info for info in folder.file_infos() if any(fnmatch(info.base_name, pattern) for pattern in patterns)]
    if not files:
        raise UserError(f"model.path: {folder} does not exist, or holds no files of a model.")
    content = json.dumps([folder.uri, *((info.base_name, info.size, info.mtime_ns) for info in files)])
    copy = COPIES / f"{folder.name}-{hashlib.sha256(content.encode()).hexdigest()[:16]}"
    if copy.is_dir():
        return copy
    with _lock(copy.with_name(f"{copy.name}.lock")):
        if not copy.is_dir():  # nobody else was quicker
            _fill(copy, folder, [info.base_name for info in files])
    return copy


def _fill(copy: Path, folder: Folder, names: Sequence[str]) -> None:
    """Copy files into a folder that gets its name when it is whole; leftovers of a killed process go first."""
    for leftover in copy.parent.glob(f".{copy.name}.*"):
        shutil.rmtree(leftover)
    partial = copy.with_name(f".{copy.name}.{uuid.uuid4().hex}")
    partial.mkdir()
    folder.download(names, partial)
    partial.rename(copy)


@contextmanager
def _lock(lock: Path) -> Iterator[None]:
    """A block that one process of this machine runs at a time."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
