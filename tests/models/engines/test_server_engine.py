"""A server as the engine of sample and evaluate: ids there and back where it can, text where not."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import nlft_ray
from nlft_ray.config import EvaluateConfig, ModelConfig, RunConfig, SampleConfig
from nlft_ray.errors import UserError
from nlft_ray.models.loading import load_tokenizer
from nlft_ray.tables.manifest import StageResult
from tests.rows import QUESTION, read_rejects, read_table, write_table
from tests.stages.judge.fake_server import Reply, serving

Behaviour = Callable[[dict[str, Any], int], Reply]
ROWS = [{"id": str(number), **QUESTION, "question": f"What is {number} + 2?"} for number in range(5)]
END = 1


def with_ids(request: dict[str, Any], number: int) -> Reply:
    """Three letters that follow from prompt and seed, and the end of the turn; as vLLM does."""
    if "prompt" not in request:
        return Reply(status=400)
    digest = hashlib.sha256(json.dumps([request["prompt"], request.get("seed")]).encode()).digest()
    ids = [*(ord("a") + byte % 26 for byte in digest[:3]), END]
    choice = {"index": 0, "text": "", "logprobs": None, "finish_reason": "stop", "token_ids": ids}
    usage = {"prompt_tokens": 7, "completion_tokens": 4, "total_tokens": 11}
    body = {"id": "1", "object": "text_completion", "created": 1, "model": "m", "choices": [choice], "usage": usage}
    return Reply(body=body)


def with_text(request: dict[str, Any], number: int) -> Reply:
    return Reply(status=404) if "prompt" in request else Reply(text=" abc ")


def without_ids(request: dict[str, Any], number: int) -> Reply:
    """A server that completes ids, but says only text."""
    reply = with_ids(request, number)
    if "prompt" not in request:
        return Reply(text=" abc ")
    del reply.body["choices"][0]["token_ids"]
    return reply


def run(folder: Path, model: str, base_url: str, stage: str = "sample", **options: Any) -> StageResult:
    told: dict[str, Any] = {
        "input": write_table(folder / "q", "questions", ROWS),
        "output": str(folder / "out"),
        "model": {"path": model},
        "pool": {"backend": "inline"},
        "max_new_tokens": 8,
        "server": {"base_url": base_url, "model": "m", "max_retries": 0},
    }
    if stage == "evaluate":
        return nlft_ray.evaluate(EvaluateConfig.model_validate(told | options))
    return nlft_ray.sample(SampleConfig.model_validate(told | options))


def test_ids_travel_there_and_back(tmp_path: Path, random_llama: str) -> None:
    """The prompt is what the tokenizer here makes of it; the response's ids are the server's own."""
    with serving(with_ids) as fake:
        manifest = run(tmp_path, random_llama, fake.base_url, responses_per_question=2, temperature=0.5).manifest
    tokenizer = load_tokenizer(ModelConfig(path=random_llama))
    asked = [request for request in fake.requests if "seed" in request]
    assert {tokenizer.decode(request["prompt"], skip_special_tokens=True).strip() for request in asked} == {
        row["question"] for row in ROWS
    }
    assert len({request["seed"] for request in asked}) == 10, "each draw has a seed of its own"
    for request in asked:
        assert (request["temperature"], request["max_tokens"], request["stop_token_ids"]) == (0.5, 8, [END])
        assert (request["top_k"], request["repetition_penalty"]) == (-1, 1.0), "not the model's own settings"
    rows = read_table(tmp_path / "out")
    assert len(rows) == 10
    for row in rows.values():
        assert row["response_ids"][-1] == END
        assert row["response"] == tokenizer.decode(row["response_ids"][:-1])
    assert manifest.identity.config["server"] == {"base_url": fake.base_url, "model": "m", "prompts": "ids"}
    assert manifest.identity.tokenizer
    assert "token_ids" not in manifest.notes


@pytest.mark.parametrize("behave", [with_text, without_ids])
def test_a_server_without_ids_is_asked_in_words_and_that_is_recorded(
    tmp_path: Path, random_llama: str, behave: Behaviour, capfd: pytest.CaptureFixture[str]
) -> None:
    with serving(behave) as fake:
        manifest = run(tmp_path, random_llama, fake.base_url, temperature=0).manifest
    tokenizer = load_tokenizer(ModelConfig(path=random_llama))
    asked = [request for request in fake.requests if "messages" in request]
    assert {request["messages"][-1]["content"] for request in asked} == {row["question"] for row in ROWS}
    for row in read_table(tmp_path / "out").values():
        assert row["response"] == "abc"
        assert row["response_ids"] == [*tokenizer("abc", add_special_tokens=False)["input_ids"], END]
    assert manifest.identity.config["server"]["prompts"] == "text"
    assert manifest.notes["token_ids"].startswith("made of the server's texts")
    assert "token ids: made of the server's texts" in capfd.readouterr().err


def test_a_table_goes_on_in_the_way_it_was_begun(tmp_path: Path, random_llama: str) -> None:
    """A server that learns to give ids meanwhile is still asked in words, and a whole table asks nothing."""

    def dies(request: dict[str, Any], number: int) -> Reply:
        return Reply(status=401) if number > 3 else with_text(request, number)

    with serving(dies) as fake:
        with pytest.raises(UserError, match=r"server: .* refuses the key"):
            run(tmp_path, random_llama, fake.base_url, temperature=0)
        fake.behave = lambda request, number: with_ids(request, number) if "prompt" in request else Reply(text="abc")
        assert run(tmp_path, random_llama, fake.base_url, temperature=0).manifest.notes["token_ids"]
        assert sum("prompt" in request for request in fake.requests) == 1, "asked for ids once, at the beginning"
        before = len(fake.requests)
        assert run(tmp_path, random_llama, fake.base_url, temperature=0).reused
        assert len(fake.requests) == before


def test_a_passing_failure_does_not_decide_the_way(tmp_path: Path, random_llama: str) -> None:
    with (
        serving(lambda request, number: Reply(status=503)) as fake,
        pytest.raises(UserError, match=r"takes token ids could not be asked: .*503"),
    ):
        run(tmp_path, random_llama, fake.base_url)
    assert not (tmp_path / "out").exists()


def test_a_failed_request_costs_its_row_alone_and_answers_are_paid_for_once(tmp_path: Path, random_llama: str) -> None:
    tokenizer = load_tokenizer(ModelConfig(path=random_llama))

    def behave(request: dict[str, Any], number: int) -> Reply:
        return Reply(status=503) if "is 2 +" in tokenizer.decode(request["prompt"]) else with_ids(request, number)

    with serving(behave) as fake:
        run(tmp_path, random_llama, fake.base_url, temperature=0, max_reject_fraction=0.5)
        (reject,) = read_rejects(tmp_path / "out")
        assert (reject["id"], reject["reason"]) == ("2", "the server failed with status 503: 1 tries, as told")
        before, output = len(fake.requests), str(tmp_path / "other")
        result = run(tmp_path, random_llama, fake.base_url, "evaluate", output=output, max_reject_fraction=0.5)
        assert len(fake.requests) - before == 2, "whether it takes ids, and what was not answered before"
    assert (result.manifest.rows_out, result.manifest.rows_rejected) == (4, 1), "no wrong answer, but none"


def test_a_draw_that_was_not_answered_is_tried_again_by_the_next_start(tmp_path: Path, random_llama: str) -> None:
    """The other draws of its question stay, and it is no bad row."""
    failing = {"now": True}

    def behave(request: dict[str, Any], number: int) -> Reply:
        reply = with_ids(request, number)
        odd = request.get("seed", 0) % 2 == 1
        return Reply(status=503) if failing["now"] and odd else reply

    options: dict[str, Any] = {"responses_per_question": 2, "max_reject_fraction": 1}
    with serving(behave) as fake:
        manifest = run(tmp_path, random_llama, fake.base_url, **options).manifest
        assert 0 < manifest.rows_rejected < 10
        kept = set(read_table(tmp_path / "out"))
        missing = {reject["id"] for reject in read_rejects(tmp_path / "out")}
        assert kept | missing == {f"{row['id']}/{draw}" for row in ROWS for draw in range(2)}
        failing["now"] = False
        before = len(fake.requests)
        again = run(tmp_path, random_llama, fake.base_url, **options).manifest
        assert len(fake.requests) - before == len(missing), "what was answered is paid for once"
    assert (again.rows_out, again.rows_rejected) == (10, 0)


def test_the_model_needs_no_weights(tmp_path: Path, random_llama: str) -> None:
    """Only its tokenizer is read."""
    folder = tmp_path / "model"
    folder.mkdir()
    for file in Path(random_llama).iterdir():
        if file.suffix != ".safetensors":
            (folder / file.name).write_bytes(file.read_bytes())
    with serving(with_ids) as fake:
        assert run(tmp_path, str(folder), fake.base_url).manifest.identity.model is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "server"}, "engine=server needs `server.base_url`"),
        ({"engine": "vllm", "server": {"base_url": "http://127.0.0.1:1/v1", "model": "m"}}, "and only it takes them"),
    ],
)
def test_engine_and_server_belong_together(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SampleConfig.model_validate({"input": "i", "output": "o", "model": {"path": "sandbox"}} | options)


def test_identities_of_before_name_no_engine() -> None:
    told = {"input": "i", "output": "o", "model": {"path": "sandbox"}}
    plain = SampleConfig.model_validate(told)
    assert not {"engine", "server"} & plain.identity().keys()
    assert SampleConfig.model_validate(told | {"engine": "transformers"}).identity() == plain.identity()
    assert SampleConfig.model_validate(told | {"engine": "vllm"}).identity()["engine"] == "vllm"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"evaluate": {"server": {"base_url": "http://127.0.0.1:1/v1", "model": "m"}}}, "evaluate.server: a run"),
        ({"sample": {"server": {"base_url": "http://127.0.0.1:1/v1", "model": "m"}}, "rounds": 2}, "sample.server:"),
    ],
)
def test_a_run_asks_no_server_for_a_model_that_it_has_just_trained(options: dict[str, Any], message: str) -> None:
    questions = {"source": "sandbox", "format": "sandbox", "limit": 4}
    told: dict[str, Any] = {"run_dir": "r", "model": {"path": "sandbox"}, "questions": questions}
    with pytest.raises(ValueError, match=message):
        RunConfig.model_validate(told | options)
