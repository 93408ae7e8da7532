"""A real S3 server (moto's) in a process of its own, and before it a proxy that refuses and delays as it is told."""

import http.client
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pyarrow.fs as pafs

BUCKET = "bucket"
KEY, SECRET = "AKIAPLANTED7EXAMPLE", "planted/secret+of+the+s3+tests"
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": KEY,
    "AWS_SECRET_ACCESS_KEY": SECRET,
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}
_PATIENCE_SECONDS = 60.0
_BETWEEN_TWO = {"connection", "keep-alive", "transfer-encoding", "content-length", "expect", "date", "server"}
"""Headers that the proxy does not pass on, but sets by itself."""


@dataclass(frozen=True)
class Request:
    """One request of a client, and its number among those about the same folder of the run."""

    method: str
    key: str
    """Of the object, or the prefix of a listing."""
    query: str
    folder: str
    """First part of the key below `run/`: a stage's folder."""
    number: int
    tries: int
    """How often this was asked for, this time included."""


@dataclass(frozen=True)
class Fault:
    """What happens to a request instead of, or before, its answer."""

    status: int = 0
    code: str = ""
    seconds: float = 0.0


SLOW_DOWN = Fault(503, "SlowDown")
DENIED = Fault(403, "InvalidAccessKeyId")
Weather = Callable[[Request], Fault | None]


def fair(request: Request) -> Fault | None:
    return None


@dataclass
class Proxy:
    """Between clients and the server. `weather` decides about each request, and may be changed at any time."""

    server_port: int
    weather: Weather = fair
    refused: list[Request] = field(default_factory=list)
    delayed: list[Request] = field(default_factory=list)
    answered: int = 0

    def __post_init__(self) -> None:
        self._numbers: Counter[str] = Counter()
        self._lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"proxy": self})
        self._listening = _Server(("127.0.0.1", 0), handler)
        threading.Thread(target=self._listening.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._listening.server_address[1]}"

    def begin_anew(self) -> None:
        """Fair weather, and nothing counted yet."""
        with self._lock:
            self.weather, self.answered = fair, 0
            self._numbers.clear()
            self.refused.clear()
            self.delayed.clear()

    def close(self) -> None:
        self._listening.shutdown()
        self._listening.server_close()

    def fault_of(self, method: str, target: str) -> Fault | None:
        parts = urlsplit(target)
        key = parts.path.removeprefix(f"/{BUCKET}").lstrip("/") or parse_qs(parts.query).get("prefix", [""])[0]
        folder = key.removeprefix("run/").partition("/")[0]
        with self._lock:
            self._numbers[folder] += 1
            asked = f"{method} {target}"
            self._numbers[asked] += 1
            request = Request(method, key, parts.query, folder, self._numbers[folder], self._numbers[asked])
            fault = self.weather(request)
            if fault is None:
                self.answered += 1
            elif fault.status:
                self.refused.append(request)
            else:
                self.delayed.append(request)
        return fault


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: object) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # clients are killed here, or tire of waiting
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: Proxy

    def _serve(self) -> None:
        body = self._body()
        fault = self.proxy.fault_of(self.command, self.path) or Fault()
        time.sleep(fault.seconds)
        if fault.status:
            self._answer(fault.status, {"Content-Type": "application/xml"}, _error(fault))
            return
        connection = http.client.HTTPConnection("127.0.0.1", self.proxy.server_port)
        headers = {name: value for name, value in self.headers.items() if name.lower() not in _BETWEEN_TWO}
        connection.request(self.command, self.path, body, headers)
        response = connection.getresponse()
        self._answer(response.status, dict(response.getheaders()), response.read())
        connection.close()

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline().partition(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        lengths = [value for name, value in headers.items() if name.lower() == "content-length"]
        length = lengths[0] if self.command == "HEAD" and lengths else str(len(body))
        self.send_response(status)
        for name, value in headers.items():
            if name.lower() not in _BETWEEN_TWO:
                self.send_header(name, value)
        self.send_header("Content-Length", length)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _serve

    def log_message(self, format: str, *arguments: object) -> None:
        pass


def _error(fault: Fault) -> bytes:
    return (
        f"<?xml version='1.0'?><Error><Code>{fault.code}</Code><Message>as the test wants it</Message></Error>".encode()
    )


@dataclass
class Store:
    """The server behind its proxy, with an empty bucket."""

    proxy: Proxy
    direct: pafs.S3FileSystem
    """Past the proxy, for the test's own eyes."""

    def begin_anew(self) -> None:
        self.proxy.begin_anew()
        self.direct.delete_dir_contents(BUCKET)

    def uri(self, path: str) -> str:
        return f"s3://{BUCKET}/{path}"

    def objects(self) -> dict[str, int]:
        """Sizes of all objects, by key."""
        found = self.direct.get_file_info(pafs.FileSelector(BUCKET, recursive=True))
        return {info.path.removeprefix(f"{BUCKET}/"): info.size for info in found if info.type == pafs.FileType.File}

    def downloaded(self, path: str, to: Path) -> Path:
        """A copy of a folder on the disk."""
        for key in self.objects():
            if key.startswith(f"{path}/"):
                file = to / key.removeprefix(f"{path}/")
                file.parent.mkdir(parents=True, exist_ok=True)
                with self.direct.open_input_stream(f"{BUCKET}/{key}") as stream:
                    file.write_bytes(stream.read())
        return to


@contextmanager
def running_store() -> Iterator[Store]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _create_bucket(f"http://127.0.0.1:{port}/{BUCKET}")
        direct = pafs.S3FileSystem(
            access_key=KEY, secret_key=SECRET, region="us-east-1", endpoint_override=f"http://127.0.0.1:{port}"
        )
        proxy = Proxy(port)
        yield Store(proxy, direct)
        proxy.close()
    finally:
        process.kill()
        process.wait()


def _create_bucket(url: str) -> None:
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            urllib.request.urlopen(urllib.request.Request(url, method="PUT")).close()
            return
        except urllib.error.URLError:
            assert time.monotonic() < deadline, "moto's server did not start"
            time.sleep(0.1)
