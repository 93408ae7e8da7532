"""Sources to import, and the import itself."""

import json
from pathlib import Path
from typing import Any

from nlft_ray.config import ImportConfig
from nlft_ray.stages.importing.job import import_data
from nlft_ray.tables.manifest import StageResult

QA = {"question": "question", "standard_answer": "answer"}


def run(source: Path | str, output: Path, **options: Any) -> StageResult:
    return import_data(ImportConfig(source=str(source), output=str(output), **options))


def write_lines(path: Path, records: list[Any]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def asked(count: int) -> list[dict[str, str]]:
    return [{"question": f"What is {n} + 1?", "answer": f"#### {n + 1}"} for n in range(count)]
