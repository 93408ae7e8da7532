"""Answers of a server that were paid for already: one JSON file for each request, so that no rerun pays twice."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from nlft_ray.storage.folder import Folder


@dataclass(frozen=True)
class AnswerCache:
    """A folder of answers, spread over 256 subfolders. The key of a server is no part of a request, so never here."""

    folder: Folder

    def get(self, request: dict[str, Any]) -> dict[str, Any] | None:
        """The answer to a request; None where there is none, or its file is not whole."""
        folder, name = self._place(request)
        if not folder.has(name):
            return None
        try:
            answer = json.loads(folder.read_text(name))["answer"]
        except (ValueError, KeyError, TypeError):
            return None
        return answer if isinstance(answer, dict) else None

    def put(self, request: dict[str, Any], answer: dict[str, Any]) -> None:
        folder, name = self._place(request)
        folder.write_text(name, json.dumps({"request": request, "answer": answer}, indent=1))

    def _place(self, request: dict[str, Any]) -> tuple[Folder, str]:
        digest = hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()
        return self.folder / digest[:2], f"{digest}.json"
