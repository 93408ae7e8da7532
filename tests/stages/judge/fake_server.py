"""A small chat server on loopback whose behaviour a test writes: for failures that a real one does not do on demand."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Reply:
    status: int = 200
    text: str = "It adds one too many."
    finish_reason: str = "stop"
    body: Any = None
    seconds: float = 0.0
    retry_after: str | None = "0.01"  # keeps back-off short


@dataclass
class FakeServer:
    """Counts what it is asked, and what is under way at once."""

    behave: Callable[[dict[str, Any], int], Reply]
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    under_way: int = 0
    most_under_way: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)
    base_url: str = ""

    def handle(self, request: dict[str, Any], headers: dict[str, str]) -> Reply:
        with self.lock:
            self.requests.append(request)
            self.headers.append(headers)
            number = len(self.requests)
            self.under_way += 1
            self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            reply = self.behave(request, number)
            time.sleep(reply.seconds)
            return reply
        finally:
            with self.lock:
                self.under_way -= 1


def completion(reply: Reply, model: str) -> dict[str, Any]:
    message = {"role": "assistant", "content": reply.text}
    return {
        "id": "1",
        "object": "chat.completion",
        "created": 1,
        "model": model,
        "choices": [{"index": 0, "message": message, "finish_reason": reply.finish_reason}],
        "usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10},
    }


@contextmanager
def serving(behave: Callable[[dict[str, Any], int], Reply]) -> Iterator[FakeServer]:
    """A server that answers the request of a number (from 1) as `behave` says."""
    fake = FakeServer(behave)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            reply = fake.handle(request, {name.lower(): value for name, value in self.headers.items()})
            body = completion(reply, request["model"]) if reply.body is None and reply.status == 200 else reply.body
            content = json.dumps(body or {"error": {"message": "as told"}}).encode()
            try:
                self.send_response(reply.status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                if reply.retry_after:
                    self.send_header("Retry-After", reply.retry_after)
                self.end_headers()
                self.wfile.write(content)
            except BrokenPipeError:
                pass  # the client had waited long enough

        def log_message(self, *arguments: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    fake.base_url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield fake
    finally:
        server.shutdown()
        server.server_close()
