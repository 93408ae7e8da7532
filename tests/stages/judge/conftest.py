"""A real model that chats, and a real server that serves it."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

_SECONDS_TO_START = 90
_TEMPLATE = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"


@pytest.fixture(scope="session")
def chat_model(tinystories: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """TinyStories with the chat template that a chat server asks for."""
    folder = tmp_path_factory.mktemp("chat") / "model"
    shutil.copytree(tinystories, folder, copy_function=shutil.copyfile)
    folder.chmod(0o755)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": _TEMPLATE}))
    return folder


@dataclass
class Served:
    base_url: str
    model: str
    process: subprocess.Popen[bytes]

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@pytest.fixture(scope="module")
def transformers_server(chat_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """`transformers serve` on loopback."""
    pytest.importorskip("uvicorn", reason="transformers serve needs transformers[serving]")
    pytest.importorskip("fastapi", reason="transformers serve needs transformers[serving]")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("server") / "log"
    transformers = Path(sys.executable).parent / "transformers"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [transformers, "serve", chat_model, "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"],
            stdout=stream,
            stderr=subprocess.STDOUT,
            env=os.environ | {"HF_HUB_OFFLINE": "1"},
        )
    served = Served(f"http://127.0.0.1:{port}/v1", str(chat_model), process)
    try:
        _wait_until_healthy(port, process, log)
        yield served
    finally:
        served.stop()


def _wait_until_healthy(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(_SECONDS_TO_START * 2):
        assert process.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2):
                return
        except OSError:
            time.sleep(0.5)
    raise AssertionError(f"the server did not start: {log.read_text()}")
