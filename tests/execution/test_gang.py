"""Processes that share a model: they give what one process gives, stay in step, and end together."""

import contextlib
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from transformers import AutoConfig

import nlft_ray
from nlft_ray.config import ModelConfig, PoolConfig, PromptConfig, ScoreConfig
from nlft_ray.errors import UserError
from nlft_ray.execution.ray_gang import Gang
from nlft_ray.execution.replica import replica_of
from nlft_ray.execution.work import DeviceFailed
from nlft_ray.models.engines.engine import Decoding
from nlft_ray.models.generation import Completion, PromptedModel
from nlft_ray.models.loading import auto_class
from nlft_ray.stages.score.worker import ScoreWorker, load_scorer
from tests.random_models import FAMILIES, save_random_model
from tests.rows import QUESTION, example, read_rejects, read_table, write_table
from tests.stages.test_score import EXAMPLE_ROWS, config, score_with

FACTS = ["logp_base", "logp_judge", "logp_standard", "top_logp_standard", "hidden_norm", "hidden_cos"]
TWO = PoolConfig(tensor_parallel=2)
ORDINARY = {
    *(("llama", True), ("llama", False)),  # the head has the embeddings' matrix, or its own
    *(("qwen3_moe", True), ("gemma2", True), ("phi3", True)),  # experts, caps and windows, fused projections
    *(("mistral3", True), ("cohere", True)),  # a wrapper, and logits that are more than the head's
}
NO_PLAN = {"bloom", "falcon", "gpt2", "gpt_oss", "lfm2", "mamba", "opt", "stablelm"}
CASES = [
    pytest.param(family, tied, marks=() if (family, tied) in ORDINARY else pytest.mark.exhaustive)
    for family in FAMILIES
    for tied in (True, False)
    if family not in NO_PLAN and (family, tied) != ("gpt_neox", True)
]
QUESTIONS = [{**QUESTION, "question": f"What is {number} + 2?"} for number in range(5)]


class Member:
    """What each process of the gang holds here. It loads one model after another, since processes start slowly."""

    def score(self, path: str, rows: list[dict[str, Any]]) -> tuple[dict[str, dict[str, Any]], dict[str, float]]:
        worker = ScoreWorker(config(path))
        worker._scorer = load_scorer(config(path, pool=TWO.model_dump()), 1)
        scored, worked = score_with(worker, rows)
        return scored, worked.counts

    def answer(self, path: str, decoding: Decoding) -> list[Completion]:
        return answers(path, decoding, 2)

    def raise_error(self, error: Exception, ranks: Sequence[int]) -> None:
        if torch.distributed.get_rank() in ranks:
            raise error
        torch.distributed.barrier()


def answers(path: str, decoding: Decoding, processes: int) -> list[Completion]:
    model = PromptedModel(ModelConfig(path=path), PromptConfig(), 4, processes)
    return model.answer("base", QUESTIONS, decoding, seed=3)


@pytest.fixture(scope="module")
def gang(ray_local: None) -> Member:
    return replica_of(TWO, Member)


def assert_same(rows: dict[str, dict[str, Any]], alone: dict[str, dict[str, Any]]) -> None:
    assert rows.keys() == alone.keys()
    for id, row in rows.items():
        for column, values in row.items():
            if column in FACTS and values is not None:
                np.testing.assert_allclose(values, alone[id][column], rtol=1e-5, atol=1e-5, err_msg=column)
            else:
                assert values == alone[id][column], column


@pytest.mark.parametrize(("family", "tied"), CASES)
def test_facts_are_those_of_one_process(gang: Member, tmp_path: Path, family: str, tied: bool) -> None:
    path = save_random_model(tmp_path, family)
    if not tied:
        settings = AutoConfig.from_pretrained(path)
        settings.tie_word_embeddings = settings.get_text_config().tie_word_embeddings = False
        auto_class(settings).from_config(settings).save_pretrained(path)
    alone, worked = score_with(ScoreWorker(config(path)), EXAMPLE_ROWS)
    together, counts = gang.score(path, EXAMPLE_ROWS)
    assert_same(together, alone)
    assert counts == worked.counts


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_text_is_that_of_one_process(gang: Member, random_llama: str, temperature: float) -> None:
    decoding = Decoding(max_new_tokens=12, temperature=temperature)
    assert gang.answer(random_llama, decoding) == answers(random_llama, decoding, 1)


def test_processes_that_raise_together_stay_in_step(gang: Member, random_llama: str) -> None:
    with pytest.raises(IndexError, match=r"^every one$"):
        gang.raise_error(IndexError("every one"), [0, 1])
    assert gang.score(random_llama, EXAMPLE_ROWS)[0].keys() == {row["id"] for row in EXAMPLE_ROWS}


def test_a_process_that_raises_alone_ends_all(gang: Member, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nlft_ray.execution.ray_gang._PATIENCE_SECONDS", 0.5)
    with monkeypatch.context() as patched:
        patched.setattr(Gang, "_dissolve", lambda self: None)
        with pytest.raises(DeviceFailed, match="1 of 2 processes raised ValueError: alone"):
            gang.raise_error(ValueError("alone"), [1])  # the other waits for it, and meets it in the next call
    with pytest.raises(UserError, match=r"one of 2 processes .*OutOfMemoryError: full.* take a smaller batch"):
        gang.raise_error(torch.OutOfMemoryError("full"), [0])
    with pytest.raises(DeviceFailed, match="one of 2 processes that share the model was lost"):
        gang.raise_error(ValueError("any"), [])


def processes(title: str) -> set[int]:
    """Processes of Ray with this in their titles."""
    found = set()
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if title in " ".join(child.cmdline()):
                found.add(child.pid)
    return found


@pytest.mark.system
def test_one_process_killed_is_all_killed_and_rows_come_once(
    ray_local: None, tmp_path: Path, random_llama: str
) -> None:
    rows = [example(str(number), correct=number % 3 == 0) for number in range(120)]
    rows.append(example("unusable", correct=True, response_ids=[1_000_000]))
    settings = {
        "input": write_table(tmp_path / "examples", "examples", rows),
        "model": {"path": random_llama},
        "max_tokens_per_batch": 1,
        "max_reject_fraction": 1,
    }

    def score(output: str, **pool: Any) -> Any:
        changes = {"output": str(tmp_path / output), "pool": {"rows_per_shard": 10, **pool}}
        return nlft_ray.score(ScoreConfig.model_validate(settings | changes)).manifest

    def written() -> dict[str, int]:
        return {file.name: file.stat().st_mtime_ns for file in (tmp_path / "together" / "data").glob("part-*.parquet")}

    others, killed, seen = processes("_Member"), list[int](), dict[str, int]()

    def kill_in_turn() -> None:
        for title in ("_Member", "_ShardActor"):
            before = len(written())
            while len(written()) == before:
                time.sleep(0.01)
            seen.update(written())
            killed.append(max(processes(title) - others))
            psutil.Process(killed[-1]).kill()

    thread = threading.Thread(target=kill_in_turn, daemon=True)
    thread.start()
    together = score("together", tensor_parallel=2)
    assert len(killed) == 2
    assert len(seen) < 13, "both were killed in the middle of the work"
    alone = score("alone", backend="inline")
    assert_same(read_table(tmp_path / "together"), read_table(tmp_path / "alone"))
    assert together.counts == alone.counts
    reasons = [[(row["id"], row["reason"]) for row in read_rejects(tmp_path / name)] for name in ("together", "alone")]
    assert reasons[0] == reasons[1]
    assert seen.items() <= written().items(), "finished shards were done again"
    deadline = time.monotonic() + 20
    while processes("_Member") - others:
        assert time.monotonic() < deadline, "members outlived their actor"
        time.sleep(0.1)
