"""Sampling and evaluation: verdicts, ids kept, seeds, no row dropped, intervals."""

import json
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import nlft_ray
from nlft_ray.config import EvaluateConfig, ModelConfig, SampleConfig
from nlft_ray.errors import UserError
from nlft_ray.models.automatic import least_rows
from nlft_ray.models.loading import load_tokenizer
from nlft_ray.stages.evaluate.accuracy import wilson_interval
from nlft_ray.stages.evaluate.worker import EvaluateWorker
from nlft_ray.stages.sample.worker import SampleWorker
from nlft_ray.tables.manifest import PLAN
from nlft_ray.tables.schema import PREDICTIONS, QUESTIONS, RESPONSES
from tests.rows import QUESTION, read_rejects, read_table, write_table

ROWS = [{"id": str(number), **QUESTION, "question": f"What is {number} + 2?"} for number in range(6)]


def question_table(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist([dict.fromkeys(QUESTIONS.names) | row for row in rows], schema=QUESTIONS)


def sample_config(model: str, **changes: Any) -> SampleConfig:
    base = {"input": "i", "output": "o", "model": {"path": model}, "max_new_tokens": 12}
    return SampleConfig.model_validate(base | changes)


def is_of_even_length(response: str, standard_answer: str) -> bool:
    """A verifier of another domain."""
    return len(response) % 2 == 0


def test_responses_keep_what_was_sampled(random_llama: str) -> None:
    worked = SampleWorker(sample_config(random_llama, responses_per_question=3))(question_table(ROWS), seed=1)
    assert worked.table.schema.equals(RESPONSES)
    rows = worked.table.to_pylist()
    kept = {row["id"] for row in rows} | {row["id"] for row, _ in worked.rejects}
    assert kept == {f"{number}/{draw}" for number in range(6) for draw in range(3)}
    tokenizer = load_tokenizer(ModelConfig(path=random_llama))
    for row in rows:
        assert row["response"] == tokenizer.decode(row["response_ids"], skip_special_tokens=True).strip()
        assert row["judgment"] is None
    assert len({row["response"] for row in rows}) > 6, "the draws differ"
    assert worked.counts["incorrect"] + worked.counts.get("correct", 0) == len(rows)


def test_the_verdict_is_the_verifiers(random_llama: str) -> None:
    verifier = "tests.stages.test_sample_and_evaluate:is_of_even_length"
    rows = SampleWorker(sample_config(random_llama, verifier=verifier))(question_table(ROWS), seed=1).table.to_pylist()
    assert {row["verdict"] for row in rows} == {"correct", "incorrect"}
    assert all((row["verdict"] == "correct") == (len(row["response"]) % 2 == 0) for row in rows)


def test_a_verifier_that_is_not_there_is_one_message(tmp_path: Path, random_llama: str) -> None:
    source = write_table(tmp_path / "q", "questions", ROWS)
    with pytest.raises(UserError, match="verifier: tests:absent cannot be loaded"):
        nlft_ray.sample(sample_config(random_llama, input=source, verifier="tests:absent"))


def test_the_seed_decides(random_llama: str) -> None:
    draw = SampleWorker(sample_config(random_llama))
    assert draw(question_table(ROWS), 1).table.equals(draw(question_table(ROWS), 1).table)
    assert not draw(question_table(ROWS), 1).table.equals(draw(question_table(ROWS), 2).table)


def test_questions_that_cannot_be_asked_say_why(random_llama: str) -> None:
    rows: list[dict[str, Any]] = [
        {"id": "open", **QUESTION, "standard_answer": None},
        {"id": "words", **QUESTION, "standard_answer": "four"},
        {"id": "long", **QUESTION, "question": "x" * 600},
        {"id": "mute", **QUESTION, "question": ""},
    ]
    worked = SampleWorker(sample_config(random_llama))(question_table(rows), seed=0)
    reasons = {row["id"]: reason for row, reason in worked.rejects}
    assert worked.table.num_rows == 0
    assert "no verdict" in reasons["open"]
    assert "holds no number" in reasons["words"]
    assert reasons["long"].startswith("too long: its base prompt of 6")
    assert reasons["mute"] == "question is missing or empty"


def test_every_test_question_counts(random_llama: str) -> None:
    rows = [*ROWS, {"id": "long", **QUESTION, "question": "x" * 600}]
    config = EvaluateConfig.model_validate(
        {"input": "i", "output": "o", "model": {"path": random_llama}, "max_new_tokens": 8, "batch_size": 4}
    )
    worked = EvaluateWorker(config)(question_table(rows), seed=0)
    assert worked.table.schema.equals(PREDICTIONS)
    found = {row["id"]: row for row in worked.table.to_pylist()}
    assert set(found) == {row["id"] for row in rows}
    assert found["long"]["correct"] is False, "a question too long for the model is a wrong answer, not a missing row"
    assert worked.counts["too_long"] == 1


@pytest.mark.usefixtures("ray_local")
def test_sampling_does_not_depend_on_the_workers(tmp_path: Path, random_llama: str) -> None:
    rows = [{"id": str(number), **QUESTION, "question": f"What is {number} + 2?"} for number in range(40)]
    source = write_table(tmp_path / "q", "questions", rows)
    tables = []
    for workers in (1, 2):
        output = tmp_path / str(workers)
        pool = {"max_workers": workers, "rows_per_shard": 10}
        result = nlft_ray.sample(
            sample_config(random_llama, input=source, output=str(output), pool=pool, max_reject_fraction=1, seed=3)
        )
        assert result.manifest.rows_out + result.manifest.rows_rejected == 40
        tables.append((read_table(output), sorted(row["id"] for row in read_rejects(output))))
    assert tables[0] == tables[1]


def test_accuracy_stands_in_the_manifest(tmp_path: Path, random_llama: str) -> None:
    config = EvaluateConfig.model_validate(
        {
            "input": write_table(tmp_path / "q", "questions", ROWS),
            "output": str(tmp_path / "p"),
            "model": {"path": random_llama},
            "pool": {"backend": "inline"},
            "max_new_tokens": 8,
            "verifier": "tests.stages.test_sample_and_evaluate:is_of_even_length",
        }
    )
    counts = nlft_ray.evaluate(config).manifest.counts
    right = sum(row["correct"] for row in read_table(tmp_path / "p").values())
    assert counts["accuracy"] == right / 6
    assert (counts["accuracy_low"], counts["accuracy_high"]) == wilson_interval(right, 6)


@pytest.mark.parametrize(("correct", "total"), [(0, 10), (5, 10), (10, 10), (353, 400)])
def test_wilson_interval_by_its_formula(correct: int, total: int) -> None:
    p, z = correct / total, 1.959963984540054
    centre = (p + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * math.sqrt(p * (1 - p) / total + z * z / (4 * total * total))
    low, high = wilson_interval(correct, total)
    assert low == pytest.approx(centre - half, abs=1e-9)
    assert high == pytest.approx(centre + half, abs=1e-9)


def test_an_interval_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="n"):
        wilson_interval(0, 0)


def test_shards_are_no_smaller_than_a_batch(tmp_path: Path, random_llama: str) -> None:
    """A table that was begun when they were keeps its cut, so that what is done of it counts."""
    rows = [{"id": str(number), **QUESTION, "question": f"What is {number} + 2?"} for number in range(40)]
    source, output = write_table(tmp_path / "q", "questions", rows), tmp_path / "out"
    told = {"input": source, "output": str(output), "max_reject_fraction": 1, "pool": {"backend": "inline"}}
    config = sample_config(random_llama, **told, max_new_tokens=2)

    def shards() -> int:
        nlft_ray.sample(config)
        assert nlft_ray.sample(config).reused
        return len(list((output / "data").glob("*.parquet")))

    assert shards() == 2
    plan = json.loads((output / PLAN).read_text())
    assert (plan["config"]["batch_size"], plan["config"]["rows_per_shard"]) == (32, 32)
    (output / PLAN).write_text(json.dumps(plan | {"config": plan["config"] | {"rows_per_shard": None}}))
    for made in (output / "manifest.json", *(output / "data").iterdir()):
        made.unlink()
    assert shards() == 3


@pytest.mark.parametrize(("draws", "questions"), [(1, 32), (4, 8), (64, 1)])
def test_a_shards_least_rows_make_one_full_batch(draws: int, questions: int) -> None:
    options = sample_config("sandbox", responses_per_question=draws, batch_size=32)
    assert least_rows(options, draws) == questions
    assert least_rows(options.model_copy(update={"engine": "vllm"}), draws) == 128 // draws
