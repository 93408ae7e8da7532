"""Loading models: any architecture, one message for what cannot be loaded, fingerprints that tell models apart."""

import shutil
from pathlib import Path

import pytest
import torch

from nlft_ray.config import ModelConfig
from nlft_ray.errors import UserError
from nlft_ray.models.loading import (
    checkpoint_quantisation,
    load_model,
    load_tokenizer,
    max_length,
    model_fingerprint,
    model_folder,
    tokenizer_fingerprint,
)
from tests.random_models import byte_tokenizer, save_random_model


def test_a_hub_name_that_cannot_be_had_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="neither a folder nor a model on the hub") as caught:
        model_folder(ModelConfig(path="someone/no-such-model"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("no folder", "no folder"),
        ("no tokenizer", "has no tokenizer"),
        ("pickled", "only pickled weights"),
        ("no weights", "has no weights"),
        ("no config", "has no config.json"),
    ],
)
def test_what_is_wrong_with_a_folder_is_said(tmp_path: Path, random_llama: str, damage: str, message: str) -> None:
    folder = tmp_path / "model"
    if damage != "no folder":
        shutil.copytree(random_llama, folder)
    if damage == "no tokenizer":
        for file in folder.glob("*token*"):
            file.unlink()
    if damage in ("pickled", "no weights"):
        (folder / "model.safetensors").unlink()
    if damage == "pickled":
        torch.save({"w": torch.zeros(1)}, folder / "pytorch_model.bin")
    if damage == "no config":
        (folder / "config.json").unlink()
    with pytest.raises(UserError, match=message) as caught:
        model_folder(ModelConfig(path=str(folder)))
    assert "\n" not in str(caught.value)


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
