"""A hub on loopback: models of local folders at commits, behind the paths that the hub's client asks for."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants


@dataclass
class Hub:
    """What the hub has, and what it was asked for."""

    branches: dict[tuple[str, str], str] = field(default_factory=dict)
    """(model, branch or tag) → commit."""
    commits: dict[str, Path] = field(default_factory=dict)
    """Commit → folder of its files."""
    gated: set[str] = field(default_factory=set)
    closed: set[str] = field(default_factory=set)
    """Models that are there, and that whoever asks has no right to read."""
    asked: list[str] = field(default_factory=list)

    def push(self, model: str, folder: Path | str, branch: str = "main") -> str:
        """Put a folder on a branch; its commit."""
        content = hashlib.sha1(usedforsecurity=False)
        for file in sorted(Path(folder).iterdir()):
            content.update(file.name.encode() + file.read_bytes())
        commit = content.hexdigest()
        self.branches[model, branch], self.commits[commit] = commit, Path(folder)
        return commit

    def files_asked(self, suffix: str) -> list[str]:
        return [path for path in self.asked if path.endswith(suffix)]

    def answer(self, path: str) -> tuple[int, bytes, dict[str, str]]:
        """Status, body and headers of an answer."""
        parts = unquote(path).strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            model, what, revision = "/".join(parts[2:4]), *(parts[4:6] or ["revision", "main"])
            if not any(model == name for name, _ in self.branches):
                return 401, b"{}", {"X-Error-Code": "RepoNotFound"}
            if model in self.closed:
                return 403, b"{}", {}
            commit = self.branches.get((model, revision), revision)
            if commit not in self.commits:
                return 404, b"{}", {"X-Error-Code": "RevisionNotFound"}
            return 200, json.dumps(self._listed(model, commit, what)).encode(), {}
        model, commit, name = "/".join(parts[:2]), parts[3], "/".join(parts[4:])
        if model in self.gated:
            return 403, b"{}", {"X-Error-Code": "GatedRepo"}
        body = (self.commits[commit] / name).read_bytes()
        return 200, body, {"ETag": f'"{hashlib.sha256(body).hexdigest()}"', "X-Repo-Commit": commit}

    def _listed(self, model: str, commit: str, what: str) -> Any:
        files = sorted(self.commits[commit].iterdir())
        if what == "tree":
            return [
                {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": file.name} for file in files
            ]
        return {"id": model, "sha": commit, "siblings": [{"rfilename": file.name} for file in files]}


@contextmanager
def served(tmp_path: Path, patch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that this process takes for the hub, with a cache of its own."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = urlsplit(self.path).path
            if self.command == "GET":
                hub.asked.append(path)
            status, body, headers = hub.answer(path)
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    patch.setattr(constants, "ENDPOINT", address)
    patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    patch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    patch.setattr(constants, "HF_HUB_OFFLINE", False)
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
