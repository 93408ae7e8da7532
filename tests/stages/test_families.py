"""Every family of models scores, trains, generates and is exported, and the figures are those of the definition."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import nlft_ray
from nlft_ray.config import ModelConfig, PromptConfig, ScoreConfig
from nlft_ray.models.engines.engine import Decoding
from nlft_ray.models.engines.transformers import Generator
from nlft_ray.models.loading import load_model, load_tokenizer
from nlft_ray.models.prompts import prompt_ids
from nlft_ray.stages.score.scorer import Scorer
from nlft_ray.stages.score.worker import ScoreWorker
from tests.random_models import FAMILIES, plain_model, save_random_model
from tests.rows import example, write_table
from tests.stages.test_score import plain_facts, score_with

INSTRUCTION = "Answer like these. 1 + 1? #### 2. "
ROWS = [
    example("right", correct=True, instruction=INSTRUCTION),
    example("wrong", correct=False, instruction=INSTRUCTION, response="2 + 2, let me see: one, two. #### 5"),
    example("open", correct=False, instruction=INSTRUCTION, standard_answer=None),
]
PADDED = {"bloom", "llama4_text", "lfm2", "mamba"}
"""Families whose texts cannot stand one after another."""
WITHOUT_PREFIX = {"lfm2", "mamba"}


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("families")
    return {family: save_random_model(folder / family, family) for family in FAMILIES}


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_those_of_a_plain_forward_pass(family: str, models: dict[str, str]) -> None:
    scorer = check_scores(models[family])
    ways = scorer.packs(), scorer._stores_prefixes
    assert ways == (family not in PADDED, family not in WITHOUT_PREFIX)


def test_a_text_that_switches_rotary_embeddings_runs_alone(tmp_path: Path) -> None:
    path = save_random_model(tmp_path, "phi3")
    settings = json.loads((tmp_path / "config.json").read_text())
    settings["original_max_position_embeddings"] = 180  # between the lengths of the rows
    settings["rope_parameters"] = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0] * 4,
        "long_factor": [4.0] * 4,
    }
    (tmp_path / "config.json").write_text(json.dumps(settings))
    scorer = check_scores(path)
    assert scorer.packs()


def check_scores(path: str) -> Scorer:
    """Hold what a model's worker finds against plain forward passes of each context; the worker's scorer."""
    config = ScoreConfig.model_validate({"input": "i", "output": "o", "model": {"path": path}})
    worker = ScoreWorker(config)
    scored, worked = score_with(worker, ROWS)
    assert worked.rejects == []
    model = plain_model(path)
    tokenizer = load_tokenizer(config.model)
    for row in ROWS:
        response = [*tokenizer(row["response"])["input_ids"], tokenizer.eos_token_id]
        for context in ("base", "judge", "standard"):
            found: Any = scored[row["id"]][f"logp_{context}"]
            if found is not None:
                prompt = prompt_ids(tokenizer, PromptConfig(), context, row)
                logp, _, hidden = plain_facts(model, prompt, response)
                np.testing.assert_allclose(found, logp, atol=1e-5, rtol=1e-5)
                if context == "base":
                    np.testing.assert_allclose(scored[row["id"]]["hidden_norm"], hidden.norm(dim=-1), rtol=1e-5)
    return worker._scorer


@pytest.mark.parametrize("family", FAMILIES)
def test_generation_is_that_of_each_prompt_alone(family: str, models: dict[str, str]) -> None:
    """Prompts of different lengths in one batch, and more of them than windows are wide."""
    config = ModelConfig(path=models[family])
    model = load_model(config)
    prompts = [[6 + (7 * number) % 250 for number in range(length)] for length in (3, 50, 61)]
    found = Generator(model, ends=[1], max_length=512, batch_size=3)(prompts, Decoding(max_new_tokens=6), 0)
    for prompt, response in zip(prompts, found, strict=True):
        ids = list(prompt)
        with torch.inference_mode():
            while len(ids) < len(prompt) + 6 and (len(ids) == len(prompt) or ids[-1] != 1):
                ids.append(int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
        assert response == ids[len(prompt) :]


@pytest.mark.parametrize(("family", "attention"), [("llama", "sdpa"), ("gemma2", "eager")])
def test_what_auto_became_is_said_and_recorded(
    family: str, attention: str, models: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_table(tmp_path / "examples", "examples", ROWS)
    settings = {"input": source, "output": str(tmp_path / "scored"), "pool": {"backend": "inline"}}
    config = ScoreConfig.model_validate(settings | {"model": {"path": models[family]}})
    assert nlft_ray.score(config).manifest.identity.config["model"]["attention"] == attention
    said = [line for line in capsys.readouterr().err.splitlines() if "auto is" in line]
    assert len(said) == (attention != "sdpa")
    assert nlft_ray.score(config).reused
    named = config.model_copy(update={"model": config.model.model_copy(update={"attention": attention})})
    assert nlft_ray.score(named).reused
