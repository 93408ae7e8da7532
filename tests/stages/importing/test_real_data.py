"""Real data, and the sandbox's."""

import json
from pathlib import Path

import pytest

from nlft_ray.errors import UserError
from tests.rows import read_table
from tests.stages.importing.support import run


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


def test_svamp_by_a_template(shared: Path, tmp_path: Path) -> None:
    """Its questions stand in two columns, and its answers are numbers."""
    source = shared / "data/svamp/SVAMP.json"
    columns = {"id": "ID", "question": "{{ Body }} {{ Question }}", "standard_answer": "Answer"}
    assert run(source, tmp_path / "out", format="columns", columns=columns).manifest.rows_out == 1000
    table = read_table(tmp_path / "out")
    for record in json.loads(source.read_text()):
        row = table[record["ID"]]
        assert row["question"] == f"{record['Body']} {record['Question']}"
        assert float(row["standard_answer"]) == record["Answer"]


def test_sandbox(tmp_path: Path) -> None:
    result = run("sandbox", tmp_path / "out", format="sandbox", limit=30, split="test", instruction="Solve.")
    table = read_table(tmp_path / "out")
    assert result.manifest.rows_out == len(table) == 30
    assert all(row["standard_answer"].startswith("####") and row["instruction"] == "Solve." for row in table.values())
    with pytest.raises(UserError, match="no split 'dev'"):
        run("sandbox", tmp_path / "other", format="sandbox", limit=30, split="dev")
