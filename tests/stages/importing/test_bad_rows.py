"""Rows that cannot be used: each kept, with its place and the reason."""

import json
from pathlib import Path

import pytest

from nlft_ray.errors import UserError
from tests.rows import read_rejects, read_table
from tests.stages.importing.support import asked, run, write_lines

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
    (b'{"question": ["a", "b"], "answer": "1"}', "question is not text"),
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
