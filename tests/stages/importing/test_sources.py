"""Every kind of source, and sources that cannot be read."""

import csv
import json
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

from nlft_ray.errors import UserError
from nlft_ray.stages.importing import job
from nlft_ray.stages.importing.sources import DatasetSource
from tests.rows import read_rejects, read_table
from tests.stages.importing.support import QA, asked, run, write_lines


def write_file(path: Path, rows: list[dict[str, str]]) -> None:
    """The rows in the format that the path's suffix tells."""
    kind, table = path.suffixes[-1], pa.Table.from_pylist(rows)
    if kind in (".gz", ".zst"):
        plain = path.with_name(path.name.removesuffix(kind))
        write_file(plain, rows)
        with pa.output_stream(path, compression={".gz": "gzip", ".zst": "zstd"}[kind]) as stream:
            stream.write(plain.read_bytes())
    elif kind in (".csv", ".tsv"):
        with path.open("w", newline="", encoding="utf-8-sig") as text:
            writer = csv.DictWriter(text, rows[0].keys(), delimiter="\t" if kind == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    elif kind == ".parquet":
        pq.write_table(table, path, row_group_size=3)
    elif kind == ".arrow":
        with pa.ipc.new_stream(path, table.schema) as writer:
            writer.write_table(table, max_chunksize=3)
    elif path.name == "x.json":
        path.write_text("\n " + json.dumps(rows, indent=1))
    else:
        write_lines(path, rows)


PLAIN = ["jsonl", "json", "lines.json", "parquet", "arrow", "csv", "tsv"]
SUFFIXES = [*PLAIN, "jsonl.gz", "jsonl.zst", "csv.gz", "json.zst"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_suffix_gives_the_same_rows(tmp_path: Path, suffix: str) -> None:
    rows, source = asked(7), tmp_path / f"x.{suffix}"
    rows[1]["question"] = 'Two lines,\n"quoted",\tand a tab?'
    write_file(source, rows)
    run(source, tmp_path / "out", format="columns", columns=QA, limit=5)
    table = read_table(tmp_path / "out")
    found = [(row["question"], row["standard_answer"]) for row in table.values()]
    assert found == [(row["question"], row["answer"]) for row in rows[:5]]
    assert list(table)[-1] == ("x.lines-5" if suffix == "lines.json" else "x-5")


def test_preference_pairs_make_two_responses_each(tmp_path: Path) -> None:
    pairs = [
        {"prompt": "1 + 1?", "chosen": "2", "rejected": "3", "why": "One too many."},
        {"prompt": "?", "chosen": "x"},
    ]
    source = write_lines(tmp_path / "p.jsonl", pairs)
    columns = {"judgment": "why"}
    run(source, tmp_path / "out", format="preference", columns=columns, max_reject_fraction=1)
    table = read_table(tmp_path / "out")
    assert [row["response"] for row in table.values()] == ["2", "3", "x"]
    wrong, right = table["p-1-rejected"], table["p-1-chosen"]
    assert (wrong["verdict"], wrong["judgment"], wrong["standard_answer"]) == ("incorrect", "One too many.", "2")
    assert (right["verdict"], right["judgment"], right["standard_answer"]) == ("correct", None, None)
    assert [row["reason"] for row in read_rejects(tmp_path / "out")] == ["response is missing or empty: p.jsonl line 2"]
    without = run(source, tmp_path / "responses", format="preference", max_reject_fraction=1)
    assert without.manifest.identity.table == "responses"


def test_completions_are_standard_answers(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "p.jsonl", [{"prompt": "1 + 1?", "completion": "2"}])
    run(source, tmp_path / "out", format="prompt_completion")
    row = read_table(tmp_path / "out")["p-1"]
    assert (row["question"], row["standard_answer"]) == ("1 + 1?", "2")


def test_feather_and_a_saved_dataset_are_read(tmp_path: Path) -> None:
    pa.feather.write_feather(pa.Table.from_pylist(asked(3)), tmp_path / "f.arrow", compression="uncompressed")
    run(tmp_path / "f.arrow", tmp_path / "one", format="gsm8k")
    datasets.Dataset.from_list(asked(3)).save_to_disk(str(tmp_path / "saved"))
    run(tmp_path / "saved", tmp_path / "two", format="gsm8k")
    assert [row["question"] for row in read_table(tmp_path / "one").values()] == [row["question"] for row in asked(3)]
    assert list(read_table(tmp_path / "two").values())[2]["question"] == asked(3)[2]["question"]


def test_bad_rows_of_csv_are_kept_with_their_number(tmp_path: Path) -> None:
    source = tmp_path / "x.csv"
    source.write_bytes(b"question,answer\nfirst,1\nshort\n\n\xe9t\xe9,2\n,3\nlong,4,5\nlast,6\n")
    run(source, tmp_path / "out", format="gsm8k", max_reject_fraction=1)
    assert list(read_table(tmp_path / "out")) == ["x-1", "x-6"]
    assert [reject["reason"] for reject in read_rejects(tmp_path / "out")] == [
        "another number of cells than the header has: x.csv row 2, 1 instead of 2",
        "question is not valid Unicode: x.csv row 3",
        "question is missing or empty: x.csv row 4",
        "another number of cells than the header has: x.csv row 5, 3 instead of 2",
    ]


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
        "table.xlsx": (b"a,b", "unknown suffix; it must be one of .jsonl, .json, .csv, .tsv, .parquet"),
        "open.csv": (b'question,answer\na,1\n"b,2', "open.csv cannot be read after row 1: unexpected end of data"),
        "twice.csv": (b"question,question\n1,2", "names column 'question' twice in its first line"),
        "plain.jsonl.gz": (b'{"question": "a", "answer": "b"}', "plain.jsonl.gz cannot be read to its end: "),
        "bad.arrow": (b"not Arrow at all", "cannot be read after row 0"),
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
    (folder / "x.xlsx").write_bytes(b"{}")
    with pytest.raises(UserError, match="holds no files that end in"):
        run(folder, tmp_path / "out", format="gsm8k")
    run(write_lines(tmp_path / "x.jsonl", asked(2)), tmp_path / "table", format="gsm8k")
    with pytest.raises(UserError, match="is a table of nlft-ray already"):
        run(tmp_path / "table", tmp_path / "out", format="gsm8k")
