"""vLLM as an engine, in this process and as a server: what it writes is what transformers writes."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import nlft_ray
from nlft_ray.config import EvaluateConfig, LoraConfig, ModelConfig, PromptConfig, SampleConfig
from nlft_ray.errors import UserError
from nlft_ray.models.engines.engine import Decoding
from nlft_ray.models.generation import Completion, PromptedModel
from tests.random_models import save_random_model
from tests.rows import QUESTION, read_table, write_table

ROWS = [{"id": str(number), **QUESTION, "question": f"Once there were {number} dogs and"} for number in range(8)]
DRAWN = Decoding(max_new_tokens=24, temperature=1.0, top_p=0.9)


def needs_vllm() -> None:
    pytest.importorskip("vllm", reason="vLLM is not installed: pip install 'nlft-ray[vllm]'")


def prompted(folder: Path, engine: str) -> PromptedModel:
    return PromptedModel(ModelConfig(path=str(folder), dtype="float32"), PromptConfig(), 128, engine=engine)


def ids(completions: list[Completion]) -> list[list[int]]:
    return [completion.ids for completion in completions]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama with heads of a size that vLLM has kernels for, on a CPU too."""
    return Path(save_random_model(tmp_path_factory.mktemp("models") / "heads-of-64", head_dim=64))


@pytest.fixture(scope="module")
def by_vllm(model: Path) -> PromptedModel:
    needs_vllm()
    return prompted(model, "vllm")


def test_a_missing_package_is_one_message(random_llama: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(UserError, match=r"engine: vllm is not installed .* pip install 'nlft-ray\[vllm\]'"):
        prompted(Path(random_llama), "vllm")


@pytest.mark.vllm
@pytest.mark.slow
def test_greedy_is_what_transformers_writes(by_vllm: PromptedModel, model: Path) -> None:
    """In float32, but for tokens that rounding decides."""
    decoding = Decoding(max_new_tokens=48)
    found = by_vllm.answer("base", ROWS, decoding, seed=0)
    expected = prompted(model, "transformers").answer("base", ROWS, decoding, seed=0)
    assert sum(a == b for a, b in zip(ids(found), ids(expected), strict=True)) >= len(ROWS) - 1
    assert [answer.ended for answer in found] == [bool(answer.ids[-1] in by_vllm._engine.ends) for answer in found]


@pytest.mark.vllm
@pytest.mark.slow
def test_draws_depend_on_their_seed_alone(by_vllm: PromptedModel) -> None:
    all_at_once = ids(by_vllm.answer("base", ROWS, DRAWN, seed=5))
    assert ids(by_vllm.answer("base", ROWS, DRAWN, seed=5)) == all_at_once
    assert ids(by_vllm.answer("base", ROWS[:3], DRAWN, seed=5)) == all_at_once[:3], "whatever runs beside them"
    assert ids(by_vllm.answer("base", ROWS, DRAWN, seed=6)) != all_at_once
    same = ids(by_vllm.answer("base", [ROWS[0]] * 4, DRAWN, seed=5))
    assert len(set(map(tuple, same))) == 4, "draws of one prompt differ"


@pytest.mark.vllm
@pytest.mark.slow
def test_more_tokens_are_drawn_than_a_step_holds(by_vllm: PromptedModel) -> None:
    """Prompts that vLLM would cut: a seed of each prompt's own went badly with that on a CPU."""
    long = [ROWS[0] | {"question": f"{number} dogs " + "and then " * 40} for number in range(128)]
    answers = by_vllm.answer("base", long, Decoding(max_new_tokens=4, temperature=1.0), seed=1)
    assert sum(answer.prompt_tokens for answer in answers) > 2 * 8192
    assert all(answer.ids for answer in answers)


@pytest.mark.vllm
@pytest.mark.slow
def test_an_adapter_stays_beside_its_base(model: Path, tmp_path: Path) -> None:
    needs_vllm()
    from nlft_ray.models.adapters import with_adapters
    from nlft_ray.models.loading import load_model

    base = ModelConfig(path=str(model), dtype="float32")
    adapted = with_adapters(load_model(base), base, LoraConfig(rank=4, alpha=32, targets=["q_proj", "v_proj"]))
    torch.manual_seed(1)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)  # as they are made, they change nothing
    adapted.save_pretrained(tmp_path / "adapter")
    greedy = Decoding(max_new_tokens=24)
    expected = ids(prompted(tmp_path / "adapter", "transformers").answer("base", ROWS, greedy, seed=0))
    found = ids(prompted(tmp_path / "adapter", "vllm").answer("base", ROWS, greedy, seed=0))
    plain = ids(prompted(model, "transformers").answer("base", ROWS, greedy, seed=0))
    assert plain != expected
    assert sum(a == b for a, b in zip(found, expected, strict=True)) >= len(ROWS) - 1


@pytest.mark.vllm
@pytest.mark.slow
def test_the_stages_run_on_it(model: Path, tmp_path: Path) -> None:
    needs_vllm()
    told: dict[str, Any] = {
        "input": write_table(tmp_path / "q", "questions", ROWS),
        "model": {"path": str(model), "dtype": "float32"},
        "pool": {"backend": "inline"},
        "engine": "vllm",
        "max_new_tokens": 8,
    }
    sampled = nlft_ray.sample(SampleConfig.model_validate(told | {"output": str(tmp_path / "s")})).manifest
    assert (sampled.rows_out, sampled.identity.config["engine"]) == (8, "vllm")
    assert sampled.identity.config["rows_per_shard"] == 128
    assert all(row["response_ids"] for row in read_table(tmp_path / "s").values())
    evaluated = nlft_ray.evaluate(EvaluateConfig.model_validate(told | {"output": str(tmp_path / "e")})).manifest
    assert evaluated.rows_out == 8
