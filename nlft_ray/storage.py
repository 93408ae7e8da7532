"""Folders on any filesystem that pyarrow or fsspec knows, and files that appear whole or not at all."""

import errno
import re
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from nlft_ray.errors import UserError

_ROWS_PER_ROW_GROUP = 1024  # what a reader that streams holds at once
_FILES_AT_ONCE, _FILES_AHEAD = 32, 1024
_UNFINISHED = re.compile(r"\..+\.[0-9a-f]{32}")
_CANNOT_WRITE = {
    errno.ENOSPC: "the disk is full. Free space",
    errno.EDQUOT: "the disk quota is used up. Free space",
    errno.EACCES: "writing there is not permitted. Choose another folder or change its permissions",
    errno.EROFS: "the filesystem is read-only. Choose another folder",
}


Item = TypeVar("Item")
Result = TypeVar("Result")


def side_by_side(look: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
    """What `look` finds, in the order of the items. Many are under way at once: a store's answer takes long to come."""
    with ThreadPoolExecutor(_FILES_AT_ONCE) as pool:
        for start in range(0, len(items), _FILES_AHEAD):  # not all at once: the results would pile up
            yield from pool.map(look, items[start : start + _FILES_AHEAD])


@dataclass(frozen=True)
class Folder:
    """A folder named by a local path or a URI (`s3://…`, `gs://…`, `fsspec+…`). It need not exist yet."""

    uri: str

    @cached_property
    def _located(self) -> tuple[pafs.FileSystem, str]:
        if "://" not in self.uri:
            return pafs.LocalFileSystem(), str(Path(self.uri).expanduser().absolute())
        try:
            filesystem, path = pafs.FileSystem.from_uri(self.uri)
        except (pa.ArrowInvalid, ValueError) as error:
            raise UserError(f"{self.uri}: not a path or URI that pyarrow can open: {error}") from error
        return filesystem, path

    @property
    def filesystem(self) -> pafs.FileSystem:
        return self._located[0]

    @property
    def path(self) -> str:
        """Path within the filesystem."""
        return self._located[1].rstrip("/")

    @property
    def is_local(self) -> bool:
        return isinstance(self.filesystem, pafs.LocalFileSystem)

    def __truediv__(self, name: str) -> "Folder":
        return Folder(f"{self.uri.rstrip('/')}/{name}")

    def __str__(self) -> str:
        return self.uri

    def has(self, name: str) -> bool:
        return self.filesystem.get_file_info(f"{self.path}/{name}").type == pafs.FileType.File

    def exists(self) -> bool:
        return self.filesystem.get_file_info(self.path).type == pafs.FileType.Directory

    def files(self, suffix: str) -> list[str]:
        """Names of the files directly in the folder that end so, sorted; empty where there is no folder."""
        selector = pafs.FileSelector(self.path, allow_not_found=True)
        return sorted(
            info.base_name
            for info in self.filesystem.get_file_info(selector)
            if info.type == pafs.FileType.File
            and info.base_name.endswith(suffix)
            and not info.base_name.startswith(".")
        )

    def remove(self) -> None:
        if self.exists():
            self.filesystem.delete_dir(self.path)

    def entries(self) -> list[str]:
        """Names of all files and folders directly in the folder, but for hidden ones."""
        selector = pafs.FileSelector(self.path, allow_not_found=True)
        names = (info.base_name for info in self.filesystem.get_file_info(selector))
        return sorted(name for name in names if not name.startswith("."))

    def clear(self, *, keep: str) -> None:
        """Delete everything in the folder but one file."""
        for name in self.entries():
            if name != keep and self.has(name):
                self.delete(name)
            elif name != keep:
                (self / name).remove()

    def delete(self, name: str) -> None:
        """Delete a file, if it is there."""
        if self.has(name):
            self.filesystem.delete_file(f"{self.path}/{name}")

    def remove_unfinished(self) -> None:
        """Delete what a killed process had begun to write here."""
        selector = pafs.FileSelector(self.path, allow_not_found=True)
        for info in self.filesystem.get_file_info(selector):
            if _UNFINISHED.fullmatch(info.base_name):
                self.delete(info.base_name)

    def read_text(self, name: str) -> str:
        with self.filesystem.open_input_stream(f"{self.path}/{name}") as stream:
            return stream.read().decode()

    def write_text(self, name: str, text: str) -> None:
        with self._committed(name) as path, self.filesystem.open_output_stream(path) as stream:
            stream.write(text.encode())

    def write_table(self, name: str, table: pa.Table, metadata: Mapping[str, str] | None = None) -> None:
        """Write a Parquet file; `metadata` goes into its footer."""
        table = table.replace_schema_metadata(dict(metadata or {}))
        with self._committed(name) as path:
            pq.write_table(
                table, path, filesystem=self.filesystem, compression="zstd", row_group_size=_ROWS_PER_ROW_GROUP
            )

    def open_parquet(self, name: str) -> pq.ParquetFile:
        return pq.ParquetFile(f"{self.path}/{name}", filesystem=self.filesystem)

    @contextmanager
    def written_locally(self, name: str) -> Iterator[Path]:
        """A path to write a file to, for libraries that know local files only. On leaving it stands in the folder."""
        with self._committed(name) as path:
            if self.is_local:
                yield Path(path)
                return
            with tempfile.TemporaryDirectory() as scratch:
                yield Path(scratch) / name
                pafs.copy_files(str(Path(scratch) / name), path, destination_filesystem=self.filesystem)

    @contextmanager
    def read_locally(self, names: Sequence[str]) -> Iterator[list[Path]]:
        """Paths to read files from, for libraries that know local files only."""
        if self.is_local:
            yield [Path(self.path) / name for name in names]
            return
        with tempfile.TemporaryDirectory() as scratch:
            for name in names:
                pafs.copy_files(f"{self.path}/{name}", str(Path(scratch) / name), source_filesystem=self.filesystem)
            yield [Path(scratch) / name for name in names]

    def upload(self, source: str, name: str) -> None:
        """Copy a local folder into this one, file by file."""
        self.filesystem.create_dir(f"{self.path}/{name}", recursive=True)
        pafs.copy_files(source, f"{self.path}/{name}", destination_filesystem=self.filesystem)

    def _committed(self, name: str) -> "_Commit":
        return _Commit(self, name)


class _Commit:
    """Gives a path to write to; on leaving, the file stands under its name, whole.

    A local file is written beside its place and renamed. An object store shows an object only when it is complete.
    """

    def __init__(self, folder: Folder, name: str):
        self._filesystem = folder.filesystem
        self._final = f"{folder.path}/{name}"
        self._written = f"{folder.path}/.{name}.{uuid.uuid4().hex}" if folder.is_local else self._final

    def __enter__(self) -> str:
        try:
            self._filesystem.create_dir(self._final.rpartition("/")[0], recursive=True)
        except OSError as error:
            self._explain(error)
            raise
        return self._written

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, *_: object) -> None:
        if self._written != self._final:
            if kind is None:
                self._filesystem.move(self._written, self._final)
            elif self._filesystem.get_file_info(self._written).type == pafs.FileType.File:
                self._filesystem.delete_file(self._written)
        self._explain(error)

    def _explain(self, error: BaseException | None) -> None:
        """Turn what a user can mend into a UserError."""
        problem = _CANNOT_WRITE.get(error.errno or 0) if isinstance(error, OSError) else None
        if problem:
            raise UserError(
                f"{self._final}: {problem}, and run the same command again: it continues where it stopped."
            ) from error
