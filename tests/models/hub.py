"""A hub on loopback: models of local folders at commits, behind the paths that its client reads and writes."""

import base64
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
    folder: Path = Path()
    """Where it keeps what is sent to it."""
    writer: str = "hf_writer"
    """The token that may write."""
    visibility: dict[str, str] = field(default_factory=dict)
    """Model that was made here → public or private."""
    messages: list[str] = field(default_factory=list)
    """Of the commits that were sent."""

    def push(self, model: str, folder: Path | str, branch: str = "main") -> str:
        """Put a folder on a branch; its commit."""
        content = hashlib.sha1(usedforsecurity=False)
        for file in sorted(Path(folder).iterdir()):
            content.update(file.name.encode() + file.read_bytes())
        commit = content.hexdigest()
        self.branches[model, branch], self.commits[commit] = commit, Path(folder)
        return commit

    def take(self, path: str, token: str | None, body: bytes) -> tuple[int, Any]:
        """Status and answer to what somebody sends: a repository to make, a card to check, files and their commit."""
        if token is None:
            return 401, {"error": "Invalid username or password."}
        if token != self.writer:
            return 403, {"error": "no right to write"}
        if path == "/api/repos/create":
            return self._make(json.loads(body))
        if path == "/api/validate-yaml":
            return 200, {}
        model, what = "/".join(path.split("/")[3:5]), path.split("/")[5]
        return 200, {"preupload": self._kept, "commit": self._commit}[what](model, body)

    def _make(self, wanted: dict[str, Any]) -> tuple[int, Any]:
        name = f"{wanted['organization'] or 'someone'}/{wanted['name']}"
        status = 409 if name in self.visibility else 200
        self.visibility.setdefault(name, wanted["visibility"])
        return status, {"url": f"{constants.ENDPOINT}/{name}"}

    def _kept(self, model: str, body: bytes) -> Any:
        """What to do with each file: all travel in the commit. The hash is that of git, of one that is here."""
        files = []
        for file in json.loads(body)["files"]:
            here = self.folder / model / file["path"]
            content = here.read_bytes() if here.is_file() else None
            blob = None if content is None else hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            files.append({"path": file["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": blob})
        return {"files": files}

    def _commit(self, model: str, body: bytes) -> Any:
        header, *files = (json.loads(line) for line in body.splitlines())
        self.messages.append(header["value"]["summary"])
        folder = self.folder / model
        folder.mkdir(parents=True, exist_ok=True)
        for file in files:
            (folder / file["value"]["path"]).write_bytes(base64.b64decode(file["value"]["content"]))
        commit = self.push(model, folder)
        return {"commitUrl": f"{constants.ENDPOINT}/{model}/commit/{commit}", "commitOid": commit}

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
    hub = Hub(folder=tmp_path / "hub")

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

        def do_POST(self) -> None:
            _, _, token = self.headers.get("Authorization", "").partition("Bearer ")
            sent = self.rfile.read(int(self.headers["Content-Length"]))
            status, answer = hub.take(urlsplit(self.path).path, token or None, sent)
            body = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    patch.setattr(constants, "ENDPOINT", address)
    patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    patch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    patch.setattr(constants, "HF_HUB_OFFLINE", False)
    patch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
    patch.delenv("HF_TOKEN", raising=False)
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
