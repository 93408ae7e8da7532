"""Loading models: any architecture, one message for what cannot be loaded, fingerprints that tell models apart."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from nlft_ray.config import ModelConfig
from nlft_ray.errors import UserError
from nlft_ray.models.loading import (
    _check_no_spill,
    checkpoint_quantisation,
    load_model,
    load_tokenizer,
    max_length,
    model_fingerprint,
    tokenizer_fingerprint,
)
from tests.random_models import byte_tokenizer, save_random_model


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("no folder", "no folder"),
        ("no tokenizer", "has no tokenizer"),
        ("pickled", "only pickled weights"),
        ("no weights", "has no weights"),
        ("no config", "has no config.json"),
        ("broken config", "config.json is damaged"),
        ("GGUF in it", "only GGUF"),
        ("GGUF", "model.gguf is a GGUF file"),
        ("cut short", "is damaged, or was not copied to its end"),
        ("a lost layer", r"lack model.layers.1\..* \(9 of the model's parameters are missing\)"),
        ("a lost shard", r"lacks model-00002-of-0000\d.safetensors \(of \d files of its weights, 1 are missing\)"),
    ],
)
def test_what_is_wrong_with_a_folder_is_said(tmp_path: Path, random_llama: str, damage: str, message: str) -> None:
    folder = tmp_path / "model"
    path, weights = folder, folder / "model.safetensors"
    if damage != "no folder":
        shutil.copytree(random_llama, folder)
    if damage == "no tokenizer":
        for file in folder.glob("*token*"):
            file.unlink()
    if damage in ("pickled", "no weights"):
        weights.unlink()
    if damage == "pickled":
        torch.save({"w": torch.zeros(1)}, folder / "pytorch_model.bin")
    if damage == "no config":
        (folder / "config.json").unlink()
    if damage == "broken config":
        (folder / "config.json").write_text('{"model_type": "lla')
    if "GGUF" in damage:
        shutil.copytree(random_llama, folder, ignore=lambda *_: ["config.json"], dirs_exist_ok=True)
        (folder / "config.json").unlink()
        path = weights.rename(folder / "model.gguf") if damage == "GGUF" else folder
        (folder / "other.gguf").write_bytes(b"GGUF")
    if damage == "cut short":
        weights.write_bytes(weights.read_bytes()[:-100])
    if damage == "a lost layer":
        kept = {name: tensor for name, tensor in load_file(weights).items() if ".layers.1." not in name}
        save_file(kept, weights, {"format": "pt"})
    if damage == "a lost shard":
        load_model(ModelConfig(path=random_llama)).save_pretrained(folder, max_shard_size="30KB")
        weights.unlink(missing_ok=True)
        next(folder.glob("model-00002-*")).unlink()
    load = load_tokenizer if damage == "no tokenizer" else load_model
    with pytest.raises(UserError, match=message) as caught:
        load(ModelConfig(path=str(path)))
    assert "\n" not in str(caught.value)


def test_on_an_accelerator_weights_go_there_as_they_are_read(
    random_llama: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU they are mapped, and need no place."""
    placed: list[Any] = []
    whole = LlamaForCausalLM.from_pretrained

    def watched(*arguments: Any, **options: Any) -> Any:
        placed.append(options["device_map"])
        return whole(*arguments, **options)

    monkeypatch.setattr(LlamaForCausalLM, "from_pretrained", watched)
    for device in (torch.device("cpu"), torch.device("meta")):
        assert load_model(ModelConfig(path=random_llama), device).device == device
    assert placed == [None, {"": torch.device("meta")}]


def test_the_type_of_the_weights_is_as_asked(random_llama: str) -> None:
    assert load_model(ModelConfig(path=random_llama)).dtype == torch.float32  # no GPU here
    assert load_model(ModelConfig(path=random_llama, dtype="bfloat16")).dtype == torch.bfloat16


def test_weights_can_be_loaded_quantised(random_llama: str) -> None:
    settings = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    quantised = load_model(ModelConfig(path=random_llama, quantization=settings))
    weight = quantised.get_parameter("model.layers.0.mlp.up_proj.weight")
    assert weight.dtype == torch.int8
    ids = torch.tensor([[5, 6, 7, 8]])
    whole = load_model(ModelConfig(path=random_llama))(ids).logits
    error = (quantised(ids).logits - whole).abs().max() / whole.abs().max()
    assert 0 < error < 0.1


@pytest.mark.parametrize("load", ["load_in_8bit", "load_in_4bit"])
def test_weights_that_lie_quantised_are_taken_for_what_they_are(load: str, random_llama: str, tmp_path: Path) -> None:
    settings = {"quant_method": "bitsandbytes", load: True}
    quantised = load_model(ModelConfig(path=random_llama, quantization=settings))
    quantised.save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    again = ModelConfig(path=str(tmp_path))
    assert checkpoint_quantisation(again) == "bitsandbytes"
    assert checkpoint_quantisation(ModelConfig(path=random_llama)) is None
    ids = torch.tensor([[5, 6, 7, 8]])
    torch.testing.assert_close(load_model(again)(ids).logits, quantised(ids).logits)


def test_an_unknown_quantisation_is_refused(random_llama: str) -> None:
    with pytest.raises(UserError, match=r"model\.quantization: Unknown quantization type, got nonsense"):
        load_model(ModelConfig(path=random_llama, quantization={"quant_method": "nonsense"}))


def test_length_is_the_models_own_or_less(random_llama: str) -> None:
    assert max_length(ModelConfig(path=random_llama)) == 512
    assert max_length(ModelConfig(path=random_llama, max_length=100)) == 100
    with pytest.raises(UserError, match="above the 512 positions"):
        max_length(ModelConfig(path=random_llama, max_length=513))


def test_fingerprints_follow_content(tmp_path: Path, random_llama: str) -> None:
    same = save_random_model(tmp_path / "same")
    other = save_random_model(tmp_path / "other", seed=1)
    original = model_fingerprint(ModelConfig(path=random_llama))
    assert model_fingerprint(ModelConfig(path=same)) == original
    assert model_fingerprint(ModelConfig(path=other)) != original
    extended = byte_tokenizer()
    extended.add_tokens(["<more>"])
    assert tokenizer_fingerprint(byte_tokenizer()) == tokenizer_fingerprint(load_tokenizer(ModelConfig(path=same)))
    assert tokenizer_fingerprint(extended) != tokenizer_fingerprint(byte_tokenizer())


def test_a_model_that_spills_over_its_gpus_is_refused() -> None:
    model = SimpleNamespace(hf_device_map={"model.layers.0": 0, "model.layers.1": "cpu", "lm_head": "disk"})
    with pytest.raises(UserError, match=r"does not fit on .* GPUs of a worker: lm_head and 1 more"):
        _check_no_spill(model, ModelConfig(path="big"))
    _check_no_spill(SimpleNamespace(hf_device_map={"": 0}), ModelConfig(path="small"))
