"""The course of an import: killed, repeated, in constant memory, there and back."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nlft_ray.errors import UserError
from nlft_ray.stages.importing import job
from tests.rows import read_table
from tests.stages.importing.support import asked, run, write_lines


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.parquet")}


def test_a_killed_import_begins_anew_and_ends_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "ROWS_PER_PART", 4)
    source = write_lines(tmp_path / "x.jsonl", [*asked(9), {"question": "?"}, *asked(12)])
    run(source, tmp_path / "whole", format="gsm8k")

    flush, calls = job._Parts.flush, []

    def die(parts: job._Parts) -> None:
        calls.append(parts)
        if len(calls) == 4:
            raise KeyboardInterrupt
        flush(parts)

    monkeypatch.setattr(job._Parts, "flush", die)
    with pytest.raises(KeyboardInterrupt):
        run(source, tmp_path / "out", format="gsm8k")
    assert len(contents(tmp_path / "out")) == 3
    pq.write_table(pa.table({"x": [1]}), tmp_path / "out" / "data" / "part-000099.parquet")
    monkeypatch.setattr(job._Parts, "flush", flush)
    result = run(source, tmp_path / "out", format="gsm8k")
    assert not result.reused
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert sorted(contents(tmp_path / "out")) == [
        *(f"data/part-00000{n}.parquet" for n in range(6)),
        "rejects/part-000000.parquet",
    ]


def test_a_complete_import_is_reused_until_its_source_changes(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "x.jsonl", asked(3))
    run(source, tmp_path / "out", format="gsm8k")
    assert run(source, tmp_path / "out", format="gsm8k").reused
    moved = tmp_path / "elsewhere" / "x.jsonl"
    moved.parent.mkdir()
    source.rename(moved)
    assert run(moved, tmp_path / "out", format="gsm8k").reused
    write_lines(moved, asked(4))
    with pytest.raises(UserError, match="made with other settings"):
        run(moved, tmp_path / "out", format="gsm8k")
    assert run(moved, tmp_path / "out", format="gsm8k", overwrite=True).manifest.rows_out == 4


def test_memory_does_not_grow_with_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows wait for their part file and no longer."""
    monkeypatch.setattr(job, "ROWS_PER_PART", 10)
    most, add = 0, job._Parts.add

    def watched(parts: job._Parts, row: Any) -> None:
        nonlocal most
        add(parts, row)
        most = max(most, len(parts.waiting))

    monkeypatch.setattr(job._Parts, "add", watched)
    run(write_lines(tmp_path / "x.jsonl", asked(2000)), tmp_path / "out", format="gsm8k")
    assert most < 10
    assert len(read_table(tmp_path / "out")) == 2000


@pytest.mark.system
@pytest.mark.smoke
def test_an_import_needs_neither_ray_nor_torch() -> None:
    code = (
        "import sys, nlft_ray.stages.importing.job;"
        "print([name for name in ('ray', 'torch', 'transformers', 'datasets') if name in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


text = st.text(min_size=1, max_size=20).filter(str.strip)


@st.composite
def example_rows(draw: st.DrawFn) -> list[dict[str, Any]]:
    ids = draw(st.lists(text, min_size=1, max_size=6, unique=True))
    rows = []
    for id in ids:
        verdict = draw(st.sampled_from(["correct", "incorrect"]))
        rows.append(
            {
                "id": id,
                "instruction": draw(st.just("") | text),
                "question": draw(text),
                "standard_answer": draw(st.none() | text),
                "response": draw(text),
                "response_ids": None,
                "verdict": verdict,
                "judgment": draw(text) if verdict == "incorrect" else None,
                "source": draw(text),
            }
        )
    return rows


@given(rows=example_rows())
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_an_imported_table_imports_as_itself(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]]
) -> None:
    folder = tmp_path_factory.mktemp("round")
    columns = {name: name for name in rows[0] if name != "response_ids"}
    run(write_lines(folder / "x.jsonl", rows), folder / "one", format="columns", columns=columns)
    assert list(read_table(folder / "one").values()) == rows
    run(folder / "one" / "data", folder / "two", format="columns", columns=columns)
    assert list(read_table(folder / "two").values()) == rows
