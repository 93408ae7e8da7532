"""Real data and a real model from the command line: import, score and train on what nobody here made."""

import json
from pathlib import Path

import pytest

from nlft_ray.cli.main import main
from nlft_ray.storage.folder import Folder
from nlft_ray.tables.manifest import read_manifest
from nlft_ray.tables.schema import INCORRECT
from nlft_ray.tables.scored import facts_of
from tests.rows import read_rejects, read_table


def counts(folder: Path, table: str) -> tuple[int, int, int]:
    manifest = read_manifest(Folder(str(folder)), table=table)
    return manifest.rows_in, manifest.rows_out, manifest.rows_rejected


def train_ten_steps(tmp_path: Path, model: Path, scored: Path) -> list[dict[str, float]]:
    """Ten optimizer steps on the first rows of a scored table; the metrics of each."""
    output = tmp_path / "trained"
    main(
        [
            "train",
            f"input={scored}",
            f"output={output}",
            f"model.path={model}",
            "backend=inline",
            "epochs=1",
            "batch_size=4",
            "micro_batch_size_per_worker=4",
            "max_steps=10",
            "learning_rate=1e-3",
        ]
    )
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_all_judged_cut_responses(tmp_path: Path, shared: Path, tinystories: Path) -> None:
    """CUT: 287 of 1,000 responses have a judgment, 47 of which say only that the judge had failed."""
    source = shared / "data" / "cut" / "train-alpaca-sample-iter1.json"
    judged, scored = tmp_path / "judged", tmp_path / "scored"
    main(["import", f"source={source}", "format=cut", f"output={judged}"])
    examples = read_table(judged)
    assert sum(row["verdict"] == INCORRECT for row in examples.values()) == 240
    rejects = read_rejects(judged)
    assert len(rejects) == 47
    assert all(row["reason"].startswith("judgment is $ERROR$") for row in rejects)
    main(
        [
            "score",
            f"input={judged}",
            f"output={scored}",
            f"model.path={tinystories}",
            "pool.backend=inline",
            "too_long=truncate",
            "max_reject_fraction=0.5",
        ]
    )
    rows = read_table(scored)
    rows_in, rows_out, rejected = counts(scored, "scored")
    assert (rows_in, rows_out) == (len(examples), len(rows))
    assert rows_in == rows_out + rejected
    incorrect = [row for row in rows.values() if row["verdict"] == INCORRECT]
    assert len(incorrect) >= 200
    for row in incorrect:
        assert facts_of(row).logp_standard is None
        assert len(row["logp_judge"]) == len(row["input_ids"]) - row["response_start"]
    metrics = train_ten_steps(tmp_path, tinystories, scored)
    assert [step["step"] for step in metrics] == list(range(1, 11))
    assert all(step["weighted_tokens"] > 0 for step in metrics)


def test_two_hundred_gsm8k_solutions_by_another_model(tmp_path: Path, shared: Path, tinystories: Path) -> None:
    """Right and wrong solutions that a fine-tuned 6B model wrote, with a judgment from the reference solution."""
    lines = (shared / "data" / "gsm8k" / "example_model_solutions.jsonl").read_text().splitlines()
    rows = []
    for line in lines[:200]:
        solutions = json.loads(line)
        solution = solutions["6b_finetuning"]
        rows.append(
            {
                "task": solutions["question"],
                "gold": solutions["ground_truth"],
                "written": solution["solution"],
                "right": "correct" if solution["is_correct"] else "incorrect",
                "critique": None if solution["is_correct"] else "Its final answer differs from the reference.",
            }
        )
    source = tmp_path / "solutions.jsonl"
    source.write_text("\n".join(json.dumps(row) for row in rows))
    examples, scored = tmp_path / "examples", tmp_path / "scored"
    columns = "{question: task, standard_answer: gold, response: written, verdict: right, judgment: critique}"
    main(["import", f"source={source}", "format=columns", f"columns={columns}", f"output={examples}"])
    assert counts(examples, "examples") == (200, 200, 0)
    main(
        [
            "score",
            f"input={examples}",
            f"output={scored}",
            f"model.path={tinystories}",
            "pool.backend=inline",
            "max_reject_fraction=0.9",
        ]
    )
    rows_in, rows_out, rejected = counts(scored, "scored")
    assert rows_in == 200 == rows_out + rejected
    assert rows_out > 100
    metrics = train_ten_steps(tmp_path, tinystories, scored)
    assert [step["step"] for step in metrics] == list(range(1, 11))
    # a step has four rows, each other ones: their losses are not to be compared
    assert all(0 < step["loss_likelihood"] < 1 and step["gradient_norm"] > 0 for step in metrics)
