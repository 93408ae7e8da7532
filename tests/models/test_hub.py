"""Models of the hub: a branch is one commit, weights are fetched by those who need them, and a refusal is one line."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

import nlft_ray
from nlft_ray.config import ModelConfig, RunConfig, ScoreConfig
from nlft_ray.errors import UserError
from nlft_ray.models.folders import model_folder, with_commit
from nlft_ray.models.loading import load_tokenizer, max_length, model_fingerprint
from nlft_ray.stages.score.worker import ScoreWorker
from tests.models.hub import Hub, served
from tests.random_models import save_random_model
from tests.rows import example, read_table, write_table

NAME = "someone/model"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with served(tmp_path, monkeypatch) as hub:
        yield hub


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"path": "someone/gated"}, r"is gated: ask for access at http.*/someone/gated, and set HF_TOKEN"),
        ({"path": "someone/closed"}, r"the hub refuses someone/closed \(403\): HF_TOKEN has no right to read it"),
        ({"path": "someone/unknown"}, r"neither a folder nor a model on the hub that may be read.*HF_TOKEN"),
        ({"path": NAME, "revision": "v9"}, r"has no branch, tag or commit v9: correct model\.revision"),
        ({"path": "some one/model"}, "neither a folder nor a model on the hub"),
    ],
)
def test_what_the_hub_refuses_is_one_line(hub: Hub, random_llama: str, model: dict[str, Any], message: str) -> None:
    hub.push(NAME, random_llama)
    hub.push("someone/gated", random_llama)
    hub.push("someone/closed", random_llama)
    hub.gated.add("someone/gated")
    hub.closed.add("someone/closed")
    with pytest.raises(UserError, match=message) as caught:
        model_folder(ModelConfig(**model))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("offline", [True, False])
def test_without_a_network_the_cache_serves_or_says_what_to_do(
    hub: Hub, random_llama: str, monkeypatch: pytest.MonkeyPatch, offline: bool
) -> None:
    commit = hub.push(NAME, random_llama)
    load_tokenizer(ModelConfig(path=NAME))
    if offline:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    else:
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # where nobody listens
    assert with_commit(ModelConfig(path=NAME), None).commit == commit
    with pytest.raises(UserError, match="Bring its folder here and name that, or mend the network") as caught:
        model_folder(ModelConfig(path="someone/other"))
    assert "\n" not in str(caught.value)


def test_a_tokenizer_comes_without_weights(hub: Hub, random_llama: str) -> None:
    hub.push(NAME, random_llama)
    config = with_commit(ModelConfig(path=NAME), None)
    assert load_tokenizer(config).eos_token == "<end>"
    assert max_length(config) == 512
    assert model_fingerprint(config) == str(config.commit)[:16]
    assert hub.files_asked(".json")
    assert not hub.files_asked(".safetensors")
    assert (model_folder(config) / "model.safetensors").is_file()
    assert len(hub.files_asked(".safetensors")) == 1


def test_a_branch_that_moves_is_one_commit_in_an_output(
    hub: Hub, tmp_path: Path, random_llama: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = hub.push(NAME, random_llama)
    table = write_table(tmp_path / "e", "examples", [example(str(number), correct=True) for number in range(8)])
    settings = {"input": table, "model": {"path": NAME, "revision": "main"}}
    settings |= {"pool": {"backend": "inline", "rows_per_shard": 4}}
    score, calls = ScoreWorker.__call__, []

    def killed(self: ScoreWorker, *arguments: Any) -> Any:
        calls.append(1)
        if len(calls) > 1:
            raise KeyboardInterrupt
        return score(self, *arguments)

    config = ScoreConfig.model_validate(settings | {"output": str(tmp_path / "out")})
    with monkeypatch.context() as patch:
        patch.setattr(ScoreWorker, "__call__", killed)
        with pytest.raises(KeyboardInterrupt):
            nlft_ray.score(config)
    later = hub.push(NAME, save_random_model(tmp_path / "later", seed=1))
    result = nlft_ray.score(config)
    assert result.manifest.identity.config["model"]["commit"] == commit != later
    assert result.manifest.identity.config["model"]["revision"] == "main"
    whole = ScoreConfig.model_validate(settings | {"output": str(tmp_path / "whole"), "model": {"path": random_llama}})
    assert nlft_ray.score(whole).manifest.rows_out == 8
    assert read_table(tmp_path / "out") == read_table(tmp_path / "whole")
    other = ScoreConfig.model_validate(settings | {"output": str(tmp_path / "other")})
    assert nlft_ray.score(other).manifest.identity.config["model"]["commit"] == later


def test_a_run_has_one_commit(hub: Hub, tmp_path: Path, random_llama: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the branch moves between its stages, and it is started again."""
    commit = hub.push(NAME, random_llama)
    (tmp_path / "questions.jsonl").write_text(json.dumps({"q": "What is 2 + 2?", "a": "#### 4"}))
    columns = {"question": "q", "standard_answer": "a"}
    questions = {"source": str(tmp_path / "questions.jsonl"), "format": "columns", "columns": columns}
    tokens = {"max_new_tokens": 4}
    settings = {"run_dir": str(tmp_path / "run"), "model": {"path": NAME}, "questions": questions}
    settings |= {"test_questions": questions, "pool": {"backend": "inline"}}
    config = RunConfig.model_validate(settings | {"sample": tokens, "judge": tokens, "evaluate": tokens})

    def lost(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("nlft_ray.stages.train.job.train", lost)
    with monkeypatch.context() as patch:
        patch.setattr("nlft_ray.stages.judge.job.judge", lost)
        with pytest.raises(KeyboardInterrupt):
            nlft_ray.run(config)
    hub.push(NAME, save_random_model(tmp_path / "later", seed=1))
    with pytest.raises(KeyboardInterrupt):
        nlft_ray.run(config)
    for stage in ("responses", "examples", "scored", "predictions/before"):
        manifest = json.loads((tmp_path / "run" / stage / "manifest.json").read_text())
        assert manifest["identity"]["config"]["model"]["commit"] == commit
