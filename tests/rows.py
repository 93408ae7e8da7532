"""Write the tables that stages read, as an import would."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from nlft_ray.execution.work import TableWork, Worker
from nlft_ray.storage.folder import Folder
from nlft_ray.tables.manifest import Identity, Manifest, finish
from nlft_ray.tables.schema import TABLES
from nlft_ray.tables.shards import DATA, Shard, ShardReport, read_rows


def write_table(
    path: Path | str,
    table: str,
    rows: Sequence[dict[str, Any]],
    rows_per_file: int = 1000,
    tokenizer: str | None = None,
    config: dict[str, Any] | None = None,
) -> str:
    """A complete folder of `table`; columns that a row lacks are null. Returns its path."""
    folder, schema = Folder(str(path)), TABLES[table]
    for number, start in enumerate(range(0, max(len(rows), 1), rows_per_file)):
        full = [dict.fromkeys(schema.names) | row for row in rows[start : start + rows_per_file]]
        (folder / DATA).write_table(f"part-{number:06d}.parquet", pa.Table.from_pylist(full, schema=schema))
    identity = Identity(stage="import", table=table, software_version="test", config=config or {}, tokenizer=tokenizer)
    manifest = Manifest(identity=identity, rows_in=len(rows), rows_out=len(rows), rows_rejected=0, seconds=0.0)
    finish(folder, manifest)
    return str(path)


def read_table(path: str | Path) -> dict[str, dict[str, Any]]:
    """Every row of a table, by id; an id that is there twice fails the test."""
    rows = list(read_rows(Folder(str(path))))
    by_id = {row["id"]: row for row in rows}
    assert len(by_id) == len(rows)
    return by_id


def work_on(worker: Worker, source: Folder, output: Folder, shard: Shard) -> ShardReport:
    """Have `worker` work on a shard, as a scoring stage would."""
    config: Any = None  # the worker stands already, so nothing is asked of it
    return TableWork("score", lambda config: worker, config, source, output).on(worker, shard)


def read_rejects(path: str | Path) -> list[dict[str, Any]]:
    folder = Folder(str(path)) / "rejects"
    return [row for name in folder.files(".parquet") for row in folder.open_parquet(name).read().to_pylist()]


QUESTION = {"instruction": "", "standard_answer": "#### 4", "question": "What is 2 + 2?"}


def example(id: str, *, correct: bool, **changes: Any) -> dict[str, Any]:
    """A row of examples about a small sum."""
    return {
        **QUESTION,
        "id": id,
        "response": "2 + 2 is 4. #### 4" if correct else "2 + 2 is 5. #### 5",
        "verdict": "correct" if correct else "incorrect",
        "judgment": None if correct else "It adds one too many.",
        "source": "test",
    } | changes
