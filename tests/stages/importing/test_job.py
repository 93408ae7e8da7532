"""Whole imports: real data, every kind of bad row, killed and repeated runs."""

import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nlft_ray.config import ImportConfig
from nlft_ray.errors import UserError
from nlft_ray.manifest import StageResult
from nlft_ray.stages.importing import job
from nlft_ray.stages.importing.job import import_data
from nlft_ray.stages.importing.sources import DatasetSource
from tests.tables import read_rejects, read_table

QA = {"question": "question", "standard_answer": "answer"}


def run(source: Path | str, output: Path, **options: Any) -> StageResult:
    return import_data(ImportConfig(source=str(source), output=str(output), **options))


def write_lines(path: Path, records: list[Any]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def asked(count: int) -> list[dict[str, str]]:
    return [{"question": f"What is {n} + 1?", "answer": f"#### {n + 1}"} for n in range(count)]


# ------------------------------------------------------------------------------------------------------- real data


@pytest.mark.parametrize(("split", "rows"), [("train", 7473), ("test", 1319)])
def test_gsm8k(shared: Path, tmp_path: Path, split: str, rows: int) -> None:
    source = shared / f"data/gsm8k/{split}.jsonl"
    manifest = run(source, tmp_path / "out", format="gsm8k").manifest
    assert (manifest.identity.table, manifest.rows_in, manifest.rows_out) == ("questions", rows, rows)
    table = read_table(tmp_path / "out")
    theirs = [json.loads(line) for line in source.read_text().splitlines()]
    assert [(row["question"], row["standard_answer"]) for row in table.values()] == [
        (record["question"], record["answer"]) for record in theirs
    ]
    assert list(table)[:2] == [f"{split}-1", f"{split}-2"]


def test_cut(shared: Path, tmp_path: Path) -> None:
    """713 responses had nothing to criticise; of 287 judgments, 47 are the judge's own failures."""
    source = shared / "data/cut/train-alpaca-sample-iter1.json"
    manifest = run(source, tmp_path / "out", format="cut").manifest
    assert (manifest.identity.table, manifest.rows_in, manifest.rows_out) == ("examples", 1000, 953)
    assert manifest.reject_reasons == {"judgment is $ERROR$": 47}
    assert manifest.counts == {"correct": 713, "incorrect": 240}
    theirs = {str(record["id"]): record for record in json.loads(source.read_text())}
    for id, row in read_table(tmp_path / "out").items():
        assert row["response"] == theirs[id]["output"]
        assert row["judgment"] == theirs[id]["judgment"]
        assert row["question"].startswith(theirs[id]["instruction"])
        assert row["question"].endswith(theirs[id]["input"])
        assert row["standard_answer"] is None


def test_verdicts_agree_with_those_that_gsm8k_came_with(shared: Path, tmp_path: Path) -> None:
    """`example_model_solutions` says for each response whether it is right: two imports, one of which compares."""
    source = shared / "data/gsm8k/example_model_solutions.jsonl"
    columns = {"question": "question", "standard_answer": "ground_truth", "response": "175b_verification.solution"}
    compared = run(source, tmp_path / "compared", format="columns", columns=columns)
    told = columns | {"verdict": "175b_verification.is_correct"}
    run(source, tmp_path / "told", format="columns", columns=told)
    assert compared.manifest.identity.table == "responses"
    assert compared.manifest.counts == {"correct": 742, "incorrect": 577}
    assert read_table(tmp_path / "compared") == read_table(tmp_path / "told")


def test_sandbox(tmp_path: Path) -> None:
    result = run("sandbox", tmp_path / "out", format="sandbox", limit=30, split="test", instruction="Solve.")
    table = read_table(tmp_path / "out")
    assert result.manifest.rows_out == len(table) == 30
    assert all(row["standard_answer"].startswith("####") and row["instruction"] == "Solve." for row in table.values())
    with pytest.raises(UserError, match="no split 'dev'"):
        run("sandbox", tmp_path / "other", format="sandbox", limit=30, split="dev")


# -------------------------------------------------------------------------------------------------------- bad rows

BAD_LINES: list[tuple[bytes, str]] = [
    (b'{"question": "a", "answer": "1"', "not JSON"),
    (b'{"question": "a\xff", "answer": "1"}', "not UTF-8"),
    (b'["question"]', "not a JSON object"),
    (b"7", "not a JSON object"),
    (b'{"question": "", "answer": "1"}', "question is missing or empty"),
    (b'{"question": " \\n", "answer": "1"}', "question is missing or empty"),
    (b'{"answer": "1"}', "question is missing or empty"),
    (b'{"question": "a"}', "answer is missing or empty"),
    (b'{"question": "a", "answer": null}', "answer is missing or empty"),
    (b'{"question": ["a"], "answer": "1"}', "question is not text"),
    (b'{"question": 5, "answer": "1"}', "question is not text"),
    (b'{"question": "a", "answer": true}', "answer is not text"),
    (b'{"question": "\\ud83d", "answer": "1"}', "question is not valid Unicode"),
    (b'{"question": "b", "answer": "1", "id": "good"}', "id stands there before"),
    (b"[" * 5000, "not JSON"),
    (b'{"question": "a", "answer": ' + b"9" * 5000 + b"}", "not JSON"),
]


def test_bad_rows_are_kept_with_place_and_reason(tmp_path: Path) -> None:
    good = [b'\xef\xbb\xbf{"question": "first", "answer": "1", "id": "good"}', b"", b'{"question":"2nd","answer":2}\r']
    source = tmp_path / "mixed.jsonl"
    source.write_bytes(b"\n".join([*good, *(line for line, _ in BAD_LINES)]))
    manifest = run(source, tmp_path / "out", format="gsm8k", max_reject_fraction=1).manifest
    assert (manifest.rows_in, manifest.rows_out, manifest.rows_rejected) == (18, 2, 16)
    table = read_table(tmp_path / "out")
    assert list(table) == ["good", "mixed-3"]
    assert table["mixed-3"]["standard_answer"] == "2"
    rejects = read_rejects(tmp_path / "out")
    for number, (reject, (line, reason)) in enumerate(zip(rejects, BAD_LINES, strict=True), 4):
        assert reject["reason"].startswith(f"{reason}: mixed.jsonl line {number}"), reject
        assert reject["stage"] == "import"
        kept = json.loads(reject["row"])["row"]
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        assert kept == (record if isinstance(record, dict) else line.decode(errors="backslashreplace")) or (
            reason == "question is not valid Unicode" and json.loads(kept) == record
        )
    assert [reject["id"] for reject in rejects[:1]] == ["mixed-4"]
    assert manifest.reject_reasons["not JSON"] == 3


def test_too_many_bad_rows_fail_and_are_shown(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "x.jsonl", [*asked(9), {"question": "no answer"}])
    with pytest.raises(UserError, match=r"(?s)1 of 10 rows.*1 × answer is missing or empty.*rejects"):
        run(source, tmp_path / "out", format="gsm8k")
    assert read_rejects(tmp_path / "out")[0]["id"] == "x-10"
    assert not (tmp_path / "out" / "manifest.json").exists()
    assert run(source, tmp_path / "out", format="gsm8k", max_reject_fraction=0.1).manifest.rows_out == 9


def test_incorrect_responses_need_a_judgment_among_examples(tmp_path: Path) -> None:
    rows = [{"q": "1?", "r": "2", "v": False, "j": None}, {"q": "2?", "r": "2", "v": True, "j": None}]
    columns = {"question": "q", "response": "r", "verdict": "v", "judgment": "j"}
    run(
        write_lines(tmp_path / "x.jsonl", rows),
        tmp_path / "out",
        format="columns",
        columns=columns,
        max_reject_fraction=1,
    )
    assert read_rejects(tmp_path / "out")[0]["reason"].startswith("an incorrect response without a judgment")


def test_ids_that_are_mapped_must_be_there_and_differ(tmp_path: Path) -> None:
    rows = [{"n": 1, "question": "a"}, {"n": 1, "question": "b"}, {"question": "c"}, {"n": 2, "question": "d"}]
    columns = {"id": "n", "question": "question"}
    source = write_lines(tmp_path / "x.jsonl", rows)
    manifest = run(source, tmp_path / "out", format="columns", columns=columns, max_reject_fraction=1).manifest
    assert {id: row["question"] for id, row in read_table(tmp_path / "out").items()} == {"1": "a", "2": "d"}
    assert manifest.reject_reasons == {"id stands there before": 1, "id is missing or empty": 1}


# ---------------------------------------------------------------------------------------------------- kinds of source


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


# ------------------------------------------------------------------------------------------------- course of the stage


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
