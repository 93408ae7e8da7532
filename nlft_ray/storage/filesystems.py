"""Filesystems behind URIs: opening one, uploading a file whole, and turning a store's errors into advice."""

import errno
import io
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from nlft_ray.errors import UserError

# `FileSystem.from_uri` would try for six seconds in all, and take three seconds without a byte for a broken connection:
# enough for a lost packet, too little for a store that asks its clients to slow down. Eight tries with pauses that
# double, up to 20 s each, last for half a minute on average.
_ATTEMPTS_VARIABLE, _ATTEMPTS = "AWS_MAX_ATTEMPTS", 8
_SECONDS_WITHOUT_A_BYTE, _SECONDS_TO_CONNECT = 30.0, 5.0
_ENDPOINT_VARIABLES = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
_S3_OPTIONS = ("endpoint_override", "region", "scheme")
BLOCK_BYTES = 8 << 20
"""Bytes copied at a time."""

_CANNOT_WRITE = {
    errno.ENOSPC: "the disk is full. Free space",
    errno.EDQUOT: "the disk quota is used up. Free space",
    errno.EACCES: "access is not permitted. Choose another folder or change its permissions",
    errno.EROFS: "the filesystem is read-only. Choose another folder",
}
_CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or the machine's role",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS, or the machine's service account",
}
_REFUSED = (
    "the store refuses these credentials. Set those of someone who may read and write there, in the environment of "
    "this machine and of every node ({credentials})"
)
_STORE_SAYS = {
    r"NO_SUCH_BUCKET|NoSuchBucket|[Bb]ucket .* not found": "there is no such bucket. Create it, or correct the name",
    r"ACCESS_DENIED|INVALID_ACCESS_KEY|SIGNATURE_DOES_NOT|INVALID_TOKEN|EXPIRED_TOKEN|HTTP status 40[13]": _REFUSED,
    r"PERMISSION_DENIED|UNAUTHENTICATED|Authenti|Authori": _REFUSED,
    r"SLOW_DOWN|SERVICE_UNAVAILABLE|SlowDown|HTTP status (429|5\d\d)|UNAVAILABLE": "the store is overloaded or out of "
    "order, after {tries}. Wait",
    r"NETWORK_CONNECTION|curlCode|timed? ?out": "the store does not answer. Check that this machine and every node "
    "reach it (AWS_ENDPOINT_URL, where it is not Amazon's)",
}
"""Pattern in a store's error message → what it means, and what to do."""


def open_filesystem(uri: str) -> tuple[pafs.FileSystem, str]:
    """The filesystem that a URI names, and the path in it.

    Raises:
        UserError: there is no such filesystem, or it cannot be opened.
    """
    parts = urlsplit(uri)
    if "@" in parts.netloc and parts.scheme in _CREDENTIALS:
        raise UserError(f"{parts.scheme}://…: it holds credentials. Give those in the environment.")
    if not parts.netloc and parts.scheme in _CREDENTIALS:
        raise UserError(f"{uri}: it names no bucket; write {parts.scheme}://bucket/folder.")
    with user_errors_for(uri):
        try:
            if parts.scheme == "s3":
                return _s3(parts.netloc, *_s3_settings(uri, parts.query)), parts.netloc + unquote(parts.path)
            return _from_uri(uri)
        except (pa.ArrowInvalid, ValueError, ImportError) as error:
            raise UserError(f"{uri}: not a path or URI that pyarrow or fsspec can open: {error}") from error


_from_uri = lru_cache(maxsize=1024)(pafs.FileSystem.from_uri)


def _s3_settings(uri: str, query: str) -> tuple[str | None, str | None, str | None, int]:
    """Endpoint, region, scheme and tries: from the URI's query, else from the environment."""
    options = dict(parse_qsl(query))
    if unknown := sorted(options.keys() - set(_S3_OPTIONS)):
        raise UserError(
            f"{uri}: unknown options {unknown}; after the question mark may stand {', '.join(_S3_OPTIONS)}."
        )
    endpoint = options.get("endpoint_override") or next(filter(None, map(os.environ.get, _ENDPOINT_VARIABLES)), None)
    return endpoint, options.get("region"), options.get("scheme"), _attempts()


def _attempts() -> int:
    attempts = os.environ.get(_ATTEMPTS_VARIABLE) or str(_ATTEMPTS)
    if not attempts.isdecimal() or int(attempts) < 1:
        raise UserError(f"{_ATTEMPTS_VARIABLE}: {attempts!r} is no number of tries; write 1 or more.")
    return int(attempts)


@lru_cache(maxsize=64)
def _s3(bucket: str, endpoint: str | None, region: str | None, scheme: str | None, attempts: int) -> pafs.S3FileSystem:
    """A bucket's filesystem, made once in each process: it keeps connections, and asks Amazon for the region once."""
    if region is None and endpoint is None:
        region = pafs.resolve_s3_region(bucket)
    return pafs.S3FileSystem(
        endpoint_override=endpoint,
        region=region,
        scheme=scheme,
        allow_delayed_open=True,  # a small object is one request instead of three
        request_timeout=_SECONDS_WITHOUT_A_BYTE,
        connect_timeout=_SECONDS_TO_CONNECT,
        retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=attempts),
    )


def uploads_atomically(filesystem: pafs.FileSystem) -> bool:
    """Whether a file appears under its name only when it is complete, as the objects of a store do."""
    return isinstance(filesystem, (pafs.S3FileSystem, pafs.GcsFileSystem, pafs.AzureFileSystem))


@contextmanager
def user_errors_for(where: str) -> Iterator[None]:
    """Turn errors that a user can repair into a UserError: full disks, and all that a store refuses."""
    try:
        yield
    except OSError as error:
        is_store = "://" in where
        problem = _CANNOT_WRITE.get(error.errno or 0)
        if problem and is_store:
            where += f" (which is written in {tempfile.gettempdir()} first)"
        elif is_store and not isinstance(error, FileNotFoundError | FileExistsError):
            problem = _meaning_of(where.partition("://")[0], error)
        if problem is None:
            raise
        raise UserError(
            f"{where}: {problem}, and run the same command again: it continues where it stopped."
        ) from error


def _meaning_of(scheme: str, error: OSError) -> str:
    """The meaning of a store's error, with the beginning of its own message."""
    message = " ".join(str(error).split())[:300]
    values: Mapping[str, str] = {
        "credentials": _CREDENTIALS.get(scheme, "see fsspec's or pyarrow's page about this store"),
        "tries": f"{_attempts()} tries ({_ATTEMPTS_VARIABLE})" if scheme == "s3" else "several tries",
    }
    for pattern, meaning in _STORE_SAYS.items():
        if re.search(pattern, message):
            return meaning.format(**values) + f" [{message}]"
    return f"the store failed: {message}. Repair that"


def upload_file(source: Path, filesystem: pafs.FileSystem, path: str) -> None:
    """Upload a local file, whole or not at all. pyarrow's own `copy_files` hides parts that a store refused.

    Callers run it in a thread of its own, which no interrupt reaches: a stream that is dropped half way closes itself,
    and the part that a store has received by then becomes an object like any other.
    """
    stream = filesystem.open_output_stream(path)
    try:
        with source.open("rb") as file:
            shutil.copyfileobj(file, stream, BLOCK_BYTES)
    except BaseException:
        with suppress(OSError):
            stream.close()  # raises where a part was refused; otherwise half a file stands there now
            filesystem.delete_file(path)
        raise
    stream.close()


class FolderParquet(pq.ParquetFile):
    """A Parquet file whose errors become user errors while it is read, which may be long after it was opened."""

    def __init__(self, path: str, filesystem: pafs.FileSystem, where: str):
        self._where = where
        super().__init__(path, filesystem=filesystem)

    def read(self, *options: Any, **named: Any) -> pa.Table:
        with user_errors_for(self._where):
            return super().read(*options, **named)

    def read_row_group(self, *options: Any, **named: Any) -> pa.Table:
        with user_errors_for(self._where):
            return super().read_row_group(*options, **named)

    def read_row_groups(self, *options: Any, **named: Any) -> pa.Table:
        with user_errors_for(self._where):
            return super().read_row_groups(*options, **named)

    def iter_batches(self, *options: Any, **named: Any) -> Iterator[pa.RecordBatch]:
        with user_errors_for(self._where):
            yield from super().iter_batches(*options, **named)


class FolderStream(io.RawIOBase):
    """A stream of bytes whose errors become user errors while it is read."""

    def __init__(self, stream: pa.NativeFile, where: str):
        self._stream, self._where = stream, where

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with user_errors_for(self._where):
            return self._stream.readinto(buffer)

    def close(self) -> None:
        self._stream.close()
        super().close()
