"""Where rows come from: files, a `datasets` name, or the sandbox. A source says what identifies it and yields rows."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from nlft_ray.config import ImportOptions
from nlft_ray.errors import UserError
from nlft_ray.log import log
from nlft_ray.sandbox import world
from nlft_ray.stages.importing.readers import SUFFIXES, Raw, SourceFile, read_file, unreadable
from nlft_ray.storage.folder import Folder
from nlft_ray.tables.manifest import MANIFEST, fingerprint

_HASH_BLOCK_BYTES = 1 << 20
_SAVED_DATASET = "dataset_info.json"
"""File that `Dataset.save_to_disk` writes beside the Arrow files with the rows."""


class Source(Protocol):
    @property
    def name(self) -> str:
        """Short name, the same wherever the files lie; the default of column `source`."""

    def fingerprint(self) -> str: ...

    def rows(self) -> Iterator[Raw]: ...


def open_source(options: ImportOptions) -> Source:
    """The source that `options.source` names.

    Raises:
        UserError: there is no such file, folder or dataset, or it holds nothing that can be imported.
    """
    if options.source == "sandbox":
        return SandboxSource(options)
    folder = Folder(options.source)
    if folder.is_file():
        return FileSource(folder.name, [_source_file(folder.parent, folder.name)])
    if folder.exists():
        return _folder_source(folder)
    if _looks_like_path(options.source):
        raise UserError(f"source: there is no file or folder {options.source}.")
    return DatasetSource(options.source, options.dataset_name, options.split)


def _looks_like_path(source: str) -> bool:
    return source.startswith((".", "/", "~")) or "://" in source or source.count("/") > 1 or source.endswith(SUFFIXES)


def _source_file(folder: Folder, name: str) -> SourceFile:
    if not name.endswith(SUFFIXES):
        raise UserError(f"source: {folder / name} has an unknown suffix; it must be one of {', '.join(SUFFIXES)}.")
    if folder.size(name) == 0:
        raise UserError(f"source: {folder / name} is empty.")
    suffix = max((suffix for suffix in SUFFIXES if name.endswith(suffix)), key=len)
    return SourceFile(folder, name, name.removesuffix(suffix))


def _folder_source(folder: Folder) -> "FileSource":
    names = folder.files("")
    if MANIFEST in names:
        raise UserError(
            f"source: {folder} is a table of nlft-ray already: name it as another stage's input, or import "
            f"{folder / 'data'}."
        )
    suffixes = (".arrow",) if _SAVED_DATASET in names else SUFFIXES
    readable = [name for name in names if name.endswith(suffixes)]
    if not readable:
        raise UserError(f"source: {folder} holds no files that end in {', '.join(SUFFIXES)}.")
    if len(readable) < len(names):
        log(f"import: of {folder}, these files are left aside: {', '.join(sorted(set(names) - set(readable)))}")
    files = [_source_file(folder, name) for name in readable]
    stems = Counter(file.stem for file in files)
    distinct = [file if stems[file.stem] == 1 else SourceFile(folder, file.name, file.name) for file in files]
    return FileSource(folder.path.rpartition("/")[2], distinct)


@dataclass(frozen=True)
class FileSource:
    """One file, or the files of a folder in the order of their names."""

    name: str
    files: list[SourceFile]

    def fingerprint(self) -> str:
        """Hash of names and contents, read in blocks.

        Raises:
            UserError: a file is not compressed as its name says.
        """
        digest = hashlib.sha256()
        for file in self.files:
            content = hashlib.sha256()
            try:
                with file.open() as stream:
                    while block := stream.read(_HASH_BLOCK_BYTES):
                        content.update(block)
            except OSError as error:
                raise unreadable(file, "to its end", error) from error
            digest.update(f"{file.name}:{content.hexdigest()}\n".encode())
        return digest.hexdigest()[:16]

    def rows(self) -> Iterator[Raw]:
        for file in self.files:
            yield from read_file(file)


@dataclass(frozen=True)
class SandboxSource:
    """Problems that the embedded world generates."""

    options: ImportOptions
    name: str = "sandbox"

    def fingerprint(self) -> str:
        return fingerprint([self.options.split, self.options.limit, self.options.seed])

    def rows(self) -> Iterator[Raw]:
        """Raises UserError: the sandbox has no such split, or fewer problems."""
        try:
            for problem in world.problems(self.options.split, self.options.limit or 0, self.options.seed):
                fields = ("id", "question", "standard_answer")
                yield Raw(problem.id, problem.id, {name: getattr(problem, name) for name in fields})
        except ValueError as error:
            raise UserError(f"source: {error}") from error


@dataclass(frozen=True)
class DatasetSource:
    """A dataset by its name on the hub (or any folder that `datasets` understands), read as a stream."""

    name: str
    configuration: str | None
    split: str

    def fingerprint(self) -> str:
        """The builder's hash: it follows from the commit, or from the data files' names and times."""
        return fingerprint([self.name, self.configuration, self.split, self._builder().hash])

    def rows(self) -> Iterator[Raw]:
        """Raises UserError: there is no such split."""
        stem = f"{self.name.rstrip('/').rpartition('/')[2]}-{self.split}"
        builder = self._builder()
        try:
            stream: Iterator[Mapping[str, Any]] = iter(builder.as_streaming_dataset(split=self.split))
        except ValueError as error:
            raise UserError(f"split: dataset {self.name} has no split {self.split!r}: {error}") from error
        for number, record in enumerate(stream, 1):
            yield Raw(f"{stem}-{number}", f"{self.name} {self.split} row {number}", dict(record))

    def _builder(self) -> Any:
        import datasets  # slow to load, and only this source needs it

        try:
            return datasets.load_dataset_builder(self.name, self.configuration)
        except (OSError, ValueError) as error:  # not found and not reachable are OSErrors
            reason = str(error).strip().splitlines()[0]
            raise UserError(
                f"source: {self.name} is neither a file, a folder nor a dataset that can be loaded: {reason}"
            ) from error
