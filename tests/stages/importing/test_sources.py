"""Every kind of source, and sources that cannot be read."""

import gzip
import json
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nlft_ray.errors import UserError
from nlft_ray.stages.importing import job
from nlft_ray.stages.importing.sources import DatasetSource
from tests.rows import read_table
from tests.stages.importing.support import QA, asked, run, write_lines


@pytest.mark.parametrize("suffix", ["jsonl", "json", "lines.json", "parquet"])
def test_every_suffix_gives_the_same_rows(tmp_path: Path, suffix: str) -> None:
    rows, source = asked(7), tmp_path / f"x.{suffix}"
    if suffix == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), source, row_group_size=3)
    elif suffix == "json":
        source.write_text("\n " + json.dumps(rows, indent=1))
    else:
        write_lines(source, rows)
    run(source, tmp_path / "out", format="columns", columns=QA, limit=5)
    found = [(row["question"], row["standard_answer"]) for row in read_table(tmp_path / "out").values()]
    assert found == [(row["question"], row["answer"]) for row in rows[:5]]


def test_a_folder_is_read_in_order_and_equal_stems_stay_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    write_lines(folder / "a.jsonl", asked(2))
    pq.write_table(pa.Table.from_pylist(asked(2)), folder / "a.parquet")
    write_lines(folder / "b.jsonl", asked(1))
    (folder / "README.md").write_text("about")
    run(folder, tmp_path / "out", format="gsm8k")
    assert list(read_table(tmp_path / "out")) == ["a.jsonl-1", "a.jsonl-2", "a.parquet-1", "a.parquet-2", "b-1"]
    assert "left aside: README.md" in capsys.readouterr().err


def test_a_dataset_through_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder stands in for the hub: what follows the name is the same."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "sums"
    folder.mkdir()
    write_lines(folder / "train.jsonl", asked(3))
    write_lines(folder / "test.jsonl", asked(2))
    source = DatasetSource(str(folder), None, "test")
    monkeypatch.setattr(job, "open_source", lambda options: source)
    result = run("some/sums", tmp_path / "out", format="gsm8k")
    assert list(read_table(tmp_path / "out")) == ["sums-test-1", "sums-test-2"]
    assert result.manifest.identity.input == source.fingerprint()
    source = DatasetSource(str(folder), None, "dev")
    with pytest.raises(UserError, match="has no split 'dev'"):
        run("some/sums", tmp_path / "other", format="gsm8k")
    with pytest.raises(UserError, match="neither a file, a folder nor a dataset"):
        DatasetSource(str(tmp_path / "nothing"), None, "train").fingerprint()


def broken_sources(folder: Path) -> dict[str, str]:
    """Files that cannot be imported, and what must be said about each."""
    files: dict[str, tuple[bytes, str]] = {
        "empty.jsonl": (b"", "is empty"),
        "blank.jsonl": (b"\n\n", "holds no rows"),
        "none.json": (b"[]", "holds no rows"),
        "table.csv": (b"a,b", "unknown suffix; it must be one of .jsonl, .json, .parquet"),
        "cut.json": (b'[{"question": "a"},', r"is not JSON: .* in line 1, column 20"),
        "object.json": (b'{\n"question": "a"}', "holds one JSON object"),
        "latin.json": (b'[{"question": "\xe9"}]', "is not UTF-8: byte 16"),
        "bad.parquet": (b"PAR1nothing", "cannot be read after row 0"),
        "other.jsonl": (b'{"qestion": "a", "answer": "b"}', r"question \(did you mean qestion\?\)"),
    }
    for name, (content, _) in files.items():
        (folder / name).write_bytes(content)
    missing = {"nowhere.jsonl": "there is no file or folder"}
    return {str(folder / name): message for name, (_, message) in files.items()} | {
        str(folder / name): message for name, message in missing.items()
    }


def test_sources_that_cannot_be_read_say_why(tmp_path: Path) -> None:
    for source, message in broken_sources(tmp_path).items():
        with pytest.raises(UserError, match=message):
            run(source, tmp_path / "out", format="gsm8k")
    assert not (tmp_path / "out").exists()
    folder = tmp_path / "only"
    folder.mkdir()
    (folder / "x.jsonl.gz").write_bytes(gzip.compress(b"{}"))
    with pytest.raises(UserError, match="holds no files that end in"):
        run(folder, tmp_path / "out", format="gsm8k")
    run(write_lines(tmp_path / "x.jsonl", asked(2)), tmp_path / "table", format="gsm8k")
    with pytest.raises(UserError, match="is a table of nlft-ray already"):
        run(tmp_path / "table", tmp_path / "out", format="gsm8k")
