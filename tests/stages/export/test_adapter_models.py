"""An adapter's folder is a model: scored with, sampled from, trained on and exported again."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

import nlft_ray
from nlft_ray.config import EvaluateConfig, ExportConfig, ModelConfig, SampleConfig, ScoreConfig
from nlft_ray.errors import UserError
from nlft_ray.models.loading import load_model, load_tokenizer, model_fingerprint, tokenizer_fingerprint
from nlft_ray.planning.meta import read_shape
from nlft_ray.stages.train.job import train
from tests.rows import QUESTION, example, read_table, write_table
from tests.stages.train import support

IDS = torch.arange(6, 26)[None]
pytestmark = pytest.mark.usefixtures("process_group", "one_thread")


def adapted(model: str, scored: str, folder: Path, **changes: Any) -> str:
    """Train adapters on a model, and export them alone."""
    config = support.train_config(model, scored, folder / "trained", lora={"rank": 4}, **changes)
    train(config.model_copy(update={"backend": "inline"}))
    return exported(folder, "adapter", merge=False)


def exported(folder: Path, name: str, **changes: Any) -> str:
    config = {"input": str(folder / "trained"), "output": str(folder / name), **changes}
    return nlft_ray.export(ExportConfig.model_validate(config)).output


def logits(path: str, **changes: Any) -> Tensor:
    with torch.no_grad():
        return load_model(ModelConfig(path=path, **changes))(IDS).logits


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_adapter_is_the_model_that_it_makes(model: str, scored: str, tmp_path: Path, dtype: Any) -> None:
    base = tmp_path / "base"
    AutoModelForCausalLM.from_pretrained(model, dtype=dtype).save_pretrained(base)
    load_tokenizer(ModelConfig(path=model)).save_pretrained(base)
    model = str(base)
    adapter = adapted(model, scored, tmp_path)
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model, dtype="float32"), adapter).eval()
    with torch.no_grad():
        torch.testing.assert_close(logits(adapter), plain(IDS).logits, rtol=1e-5, atol=1e-5)
    merged = exported(tmp_path, "merged", dtype=dtype)
    assert torch.equal(logits(adapter, dtype=dtype), logits(merged, dtype=dtype))
    assert not torch.equal(logits(adapter, dtype=dtype), logits(model, dtype=dtype))
    assert all(parameter.requires_grad for parameter in load_model(ModelConfig(path=adapter)).parameters())
    assert read_shape(ModelConfig(path=adapter)) == read_shape(ModelConfig(path=model))
    tokenizers = [tokenizer_fingerprint(load_tokenizer(ModelConfig(path=path))) for path in (adapter, model)]
    assert tokenizers[0] == tokenizers[1]
    prints = {model_fingerprint(ModelConfig(path=path)) for path in (adapter, merged, model)}
    assert len(prints) == 3


def test_stages_take_an_adapter_for_the_merged_model(model: str, scored: str, tmp_path: Path) -> None:
    adapter = adapted(model, scored, tmp_path)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (Path(adapter) / file).unlink(missing_ok=True)  # as many adapters come: then it is the base's
    merged = exported(tmp_path, "merged")
    row = QUESTION | {"question": "a b c", "standard_answer": "d e"}
    questions = write_table(tmp_path / "q", "questions", [{"id": "1", **row}])
    examples = write_table(tmp_path / "e", "examples", [example("1", correct=True) | row | {"response": "f g"}])
    for stage, kind, table in (
        (nlft_ray.score, ScoreConfig, examples),
        (nlft_ray.sample, SampleConfig, questions),
        (nlft_ray.evaluate, EvaluateConfig, questions),
    ):
        tables = []
        for path in (adapter, merged):
            output = tmp_path / kind.__name__ / Path(path).name
            settings: dict[str, Any] = {"input": table, "output": str(output), "model": {"path": path}}
            settings |= {
                "pool": {"backend": "inline"},
                "prompts": {"plain": "{{ message }} ", "base": "{{ question }}"},
            }
            tokens = {} if kind is ScoreConfig else {"max_new_tokens": 4, "verifier": f"{__name__}:any_answer"}
            result = stage(kind.model_validate(settings | tokens))
            assert result.manifest.rows_out == 1
            tables.append([{**row, "source": None} for row in read_table(output).values()])
        assert tables[0] == tables[1]


def any_answer(response: str, standard_answer: str) -> bool:
    return True


def test_training_goes_on_from_an_adapter(model: str, scored: str, tmp_path: Path) -> None:
    adapter = adapted(model, scored, tmp_path / "first")
    merged = exported(tmp_path / "first", "merged")
    chained = adapted(adapter, scored, tmp_path / "second", seed=1)
    adapted(merged, scored, tmp_path / "plain", seed=1)
    for name in ("merged", "merged_in_bfloat16"):
        dtype = {"dtype": "bfloat16"} if "bfloat16" in name else {}
        second, plain = (exported(tmp_path / folder, name, **dtype) for folder in ("second", "plain"))
        assert (
            load_file(Path(second) / "model.safetensors").keys() == load_file(Path(plain) / "model.safetensors").keys()
        )
        torch.testing.assert_close(logits(second), logits(plain), rtol=1e-5, atol=1e-5)
    assert torch.equal(logits(chained), logits(exported(tmp_path / "second", "merged"))), "an adapter on an adapter"
    full = support.train_config(adapter, scored, tmp_path / "full" / "trained").model_copy(update={"backend": "inline"})
    train(full)
    assert not torch.equal(logits(exported(tmp_path / "full", "model")), logits(adapter))


def test_what_is_wrong_with_an_adapter_is_said(model: str, scored: str, tmp_path: Path) -> None:
    adapter = adapted(model, scored, tmp_path)

    def refused(name: str, **changes: Any) -> str:
        with pytest.raises(UserError) as caught:
            load_model(ModelConfig(path=str(tmp_path / name), **changes))
        assert "\n" not in str(caught.value)
        return str(caught.value)

    def copied(name: str, **settings: Any) -> Path:
        folder = tmp_path / name
        shutil.copytree(adapter, folder)
        file = folder / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | settings))
        return folder

    copied("moved", base_model_name_or_path="/old/place")
    assert "no folder /old/place. It is the base of the adapter" in refused("moved")
    copied("nameless", base_model_name_or_path=None)
    assert "names no base_model_name_or_path" in refused("nameless")
    (copied("empty") / "adapter_model.safetensors").unlink()
    assert "has no adapter_model.safetensors" in refused("empty")
    weights = copied("cut") / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-50])
    assert "does not load on" in refused("cut")
    other = support.train_config(adapter, scored, tmp_path / "zero", zero_stage=3, lora={})
    with pytest.raises(UserError, match=r"is an adapter, .* weights that ZeRO-3 spreads, .*Export it with merge=true"):
        train(other.model_copy(update={"backend": "inline"}))


def test_an_adapter_on_quantised_weights_stays_beside_them(model: str, scored: str, tmp_path: Path) -> None:
    adapter = adapted(model, scored, tmp_path, learning_rate=0.1)
    quantised = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    exact, without = logits(adapter), logits(model, quantization=quantised)
    found = logits(adapter, quantization=quantised)
    assert (found - exact).norm() < 0.2 * (without - exact).norm()
    config = support.train_config(adapter, scored, tmp_path / "more", lora={}, model={"path": adapter})
    config = config.model_copy(update={"model": ModelConfig(path=adapter, quantization=quantised), "backend": "inline"})
    with pytest.raises(UserError, match=r"cannot be merged into quantised weights"):
        train(config)
