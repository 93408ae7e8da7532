"""Folders on any filesystem that pyarrow or fsspec knows, and files that appear whole or not at all."""

import io
import re
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar, cast

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from nlft_ray.storage.filesystems import (
    BLOCK_BYTES,
    FolderParquet,
    FolderStream,
    open_filesystem,
    upload_file,
    uploads_atomically,
    user_errors_for,
)

_ROWS_PER_ROW_GROUP = 1024  # what a reader that streams holds at once
_FILES_AT_ONCE, _FILES_AHEAD = 32, 1024
_BUFFER_BYTES = 1 << 20
_UNFINISHED = re.compile(r"\..+\.[0-9a-f]{32}")

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_concurrently(function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
    """Results of a function, in the order of the items, from threads: a store's answer takes long to come."""
    with ThreadPoolExecutor(_FILES_AT_ONCE) as pool:
        for start in range(0, len(items), _FILES_AHEAD):  # not all at once: the results would pile up
            yield from pool.map(function, items[start : start + _FILES_AHEAD])


@dataclass(frozen=True)
class Folder:
    """A folder named by a local path or a URI (`s3://…`, `gs://…`, `fsspec+…`). It need not exist yet.

    Raises:
        UserError: whatever is done with it, when the store refuses it, the disk is full or writing is not permitted.
    """

    uri: str

    def _open_filesystem(self) -> tuple[pafs.FileSystem, str]:
        if "://" not in self.uri:
            return pafs.LocalFileSystem(), str(Path(self.uri).expanduser().absolute())
        return open_filesystem(self.uri)

    @property
    def filesystem(self) -> pafs.FileSystem:
        return self._open_filesystem()[0]

    @property
    def path(self) -> str:
        """Path within the filesystem."""
        return self._open_filesystem()[1].rstrip("/")

    @property
    def is_local(self) -> bool:
        return isinstance(self.filesystem, pafs.LocalFileSystem)

    def __truediv__(self, name: str) -> "Folder":
        path, query = self._split()
        return Folder(f"{path}/{name}{query}")

    @property
    def parent(self) -> "Folder":
        """The folder around it; a bucket's is the bucket."""
        path, query = self._split()
        above = path.rpartition("/")[0]
        if "://" in path:
            return Folder((above if "://" in above else path) + query)
        return Folder(above or ("/" if path.startswith("/") else "."))

    @property
    def name(self) -> str:
        """The last name of the path."""
        return self._split()[0].rpartition("/")[2]

    def _split(self) -> tuple[str, str]:
        """The path without a slash at its end, and a URI's options, question mark included."""
        path, mark, options = self.uri.partition("?") if "://" in self.uri else (self.uri, "", "")
        return path.rstrip("/"), mark + options

    def __str__(self) -> str:
        return self.uri

    def _info(self, name: str = "") -> pafs.FileInfo:
        with user_errors_for(self.uri):
            filesystem, path = self._open_filesystem()
            return filesystem.get_file_info(f"{path.rstrip('/')}/{name}" if name else path.rstrip("/"))

    def _infos(self) -> list[pafs.FileInfo]:
        """Files and folders directly in the folder; none where there is no folder."""
        with user_errors_for(self.uri):
            return self.filesystem.get_file_info(pafs.FileSelector(self.path, allow_not_found=True))

    def has(self, name: str) -> bool:
        return self._info(name).type == pafs.FileType.File

    def size(self, name: str) -> int:
        """Size of a file in bytes."""
        return self._info(name).size or 0

    def exists(self) -> bool:
        return self._info().type == pafs.FileType.Directory

    def is_file(self) -> bool:
        """Whether there is a file where a folder could be."""
        return self._info().type == pafs.FileType.File

    def files(self, suffix: str) -> list[str]:
        """Names of the files directly in the folder with this suffix, sorted; empty where there is no folder."""
        return [info.base_name for info in self.file_infos() if info.base_name.endswith(suffix)]

    def file_infos(self) -> list[pafs.FileInfo]:
        """Names, sizes and times of the files directly in the folder, but for hidden ones, by name."""
        files = (info for info in self._infos() if info.type == pafs.FileType.File)
        return sorted(
            (info for info in files if not info.base_name.startswith(".")), key=lambda info: str(info.base_name)
        )

    def folders(self) -> list["Folder"]:
        """The folders directly in the folder, but for hidden ones."""
        names = sorted(info.base_name for info in self._infos() if info.type == pafs.FileType.Directory)
        return [self / name for name in names if not name.startswith(".")]

    def remove(self) -> None:
        if self.exists():
            with user_errors_for(self.uri):
                self.filesystem.delete_dir(self.path)

    def entries(self) -> list[str]:
        """Names of all files and folders directly in the folder, but for hidden ones."""
        names = (info.base_name for info in self._infos())
        return sorted(name for name in names if name and not name.startswith("."))

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
            with user_errors_for(self.uri):
                self.filesystem.delete_file(f"{self.path}/{name}")

    def remove_unfinished(self) -> None:
        """Delete files that a killed process had begun to write here."""
        for info in self._infos():
            if _UNFINISHED.fullmatch(info.base_name):
                self.delete(info.base_name)

    def read_text(self, name: str) -> str:
        with user_errors_for(self.uri), self.filesystem.open_input_stream(f"{self.path}/{name}") as stream:
            return stream.read().decode()

    def write_text(self, name: str, text: str) -> None:
        with self.atomic_file(name) as path:
            path.write_bytes(text.encode())

    def write_table(self, name: str, table: pa.Table, metadata: Mapping[str, str] | None = None) -> None:
        """Write a Parquet file; `metadata` goes into its footer."""
        table = table.replace_schema_metadata(dict(metadata or {}))
        with self.atomic_file(name) as path:
            pq.write_table(table, path, compression="zstd", row_group_size=_ROWS_PER_ROW_GROUP)

    def open_parquet(self, name: str) -> pq.ParquetFile:
        with user_errors_for(self.uri):
            return FolderParquet(f"{self.path}/{name}", self.filesystem, self.uri)

    def open(self, name: str) -> BinaryIO:
        """A stream of a file's bytes, read in blocks."""
        with user_errors_for(self.uri):
            stream = self.filesystem.open_input_stream(f"{self.path}/{name}")
        return cast(BinaryIO, io.BufferedReader(FolderStream(stream, self.uri), _BUFFER_BYTES))

    def read_blocks(self, name: str, starts: Sequence[int], size: int) -> Iterator[bytes]:
        """Blocks of `size` bytes of a file, one from each of the `starts`."""
        with user_errors_for(self.uri), self.filesystem.open_input_file(f"{self.path}/{name}") as file:
            for start in starts:
                yield file.read_at(size, start)

    @contextmanager
    def atomic_file(self, name: str) -> Iterator[Path]:
        """A local path to write a file to. On leaving, the whole file is in the folder; on an exception, nothing is.

        A local file is written beside its place and renamed. A file for elsewhere is written to this machine's
        temporary folder first: were a store's own stream left by an exception, closing it would make a whole object of
        the half that was written.
        """
        with user_errors_for(f"{self}/{name}"):
            if not self.is_local:
                with tempfile.TemporaryDirectory() as scratch:
                    yield Path(scratch) / name
                    self._upload(Path(scratch) / name, name)
                return
            final = Path(self.path) / name
            final.parent.mkdir(parents=True, exist_ok=True)
            partial = final.with_name(_unfinished(name))
            try:
                yield partial
                partial.replace(final)
            finally:
                partial.unlink(missing_ok=True)

    def _upload(self, source: Path, name: str) -> None:
        """Upload a file under a name of its own, renamed when it is whole; a store shows whole objects anyway."""
        with user_errors_for(f"{self}/{name}"):
            filesystem, whole = self.filesystem, uploads_atomically(self.filesystem)
            target = f"{self.path}/{name if whole else _unfinished(name)}"
            if not whole:  # a store has no folders to create
                filesystem.create_dir(self.path, recursive=True)
            with ThreadPoolExecutor(1) as thread:
                thread.submit(upload_file, source, filesystem, target).result()
            if not whole:
                filesystem.move(target, f"{self.path}/{name}")

    @contextmanager
    def atomic_files(self) -> Iterator[Path]:
        """A local folder to write files into. On leaving, each is in this folder, whole; on an exception, none."""
        if not self.is_local:
            with tempfile.TemporaryDirectory() as scratch:
                yield Path(scratch)
                self.upload(Path(scratch))
            return
        place = Path(self.path)
        for leftover in place.glob(".files.*"):  # of a killed process
            shutil.rmtree(leftover)
        with user_errors_for(self.uri):
            partial = place / _unfinished("files")
            partial.mkdir(parents=True)
            try:
                yield partial
                for file in sorted(partial.iterdir()):
                    file.replace(place / file.name)
            finally:
                shutil.rmtree(partial, ignore_errors=True)

    @contextmanager
    def local_files(self, names: Sequence[str]) -> Iterator[Path]:
        """A local folder that holds these files, for libraries that know local files only."""
        if self.is_local:
            yield Path(self.path)
            return
        with tempfile.TemporaryDirectory() as scratch:
            self.download(names, Path(scratch))
            yield Path(scratch)

    def download(self, names: Sequence[str], target: Path) -> None:
        """Copy files into a local folder."""
        with user_errors_for(self.uri):
            for name in names:
                with (
                    self.filesystem.open_input_stream(f"{self.path}/{name}") as stream,
                    (target / name).open("wb") as file,
                ):
                    shutil.copyfileobj(stream, file, BLOCK_BYTES)

    def upload(self, source: Path) -> None:
        """Copy the files of a local folder into this one, each whole."""
        for file in sorted(source.iterdir()):
            self._upload(file, file.name)


def _unfinished(name: str) -> str:
    return f".{name}.{uuid.uuid4().hex}"
