"""Adapters stand where a family takes them, and what they leave is known."""

import warnings
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from nlft_ray.config import LoraConfig, ModelConfig
from nlft_ray.errors import UserError
from nlft_ray.models.adapters import adapted_share, outside_the_language_model, with_adapters, with_trained_adapters
from nlft_ray.models.loading import load_model
from tests.random_models import save_random_model

IDS = torch.arange(6, 26)[None]
BASE = ModelConfig(path="org/base")


@pytest.mark.parametrize(
    ("family", "left_out"),
    [("llama", {"embed_tokens"}), ("mixtral", {"embed_tokens"}), ("gpt_oss", {"embed_tokens", "experts", "router"})],
)
def test_the_share_that_adapters_change(family: str, left_out: set[str], tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(save_random_model(tmp_path, family))
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    matrices = {
        name: size
        for name, size in sizes.items()
        if (not left_out & set(name.split(".")) and name.endswith("proj.weight")) or name.endswith("mlp.gate.weight")
    }
    matrices |= {name: size for name, size in sizes.items() if "experts" in name and "experts" not in left_out}
    share = adapted_share(with_adapters(model, BASE, LoraConfig()))
    assert share == pytest.approx(sum(matrices.values()) / sum(sizes.values()))
    assert (share < 0.5) == (family == "gpt_oss")


def test_experts_that_cannot_drop_are_the_users_to_mend(tmp_path: Path) -> None:
    path = save_random_model(tmp_path, "mixtral")
    with pytest.raises(UserError, match=r"lora.dropout: the experts of org/base"):
        with_adapters(AutoModelForCausalLM.from_pretrained(path), BASE, LoraConfig(dropout=0.1))
    named = LoraConfig(dropout=0.1, targets=["q_proj", "v_proj"])
    assert adapted_share(with_adapters(AutoModelForCausalLM.from_pretrained(path), BASE, named)) < 0.1


@pytest.mark.parametrize("family", ["gemma3", "gpt_oss", "mixtral"])  # a wrapper, no experts, experts in one parameter
def test_an_adapters_folder_is_merged_into_every_kind_of_weights(family: str, tmp_path: Path) -> None:
    config = ModelConfig(path=save_random_model(tmp_path / "base", family))
    adapted = with_adapters(load_model(config), config, LoraConfig(rank=4)).eval()
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    adapted.save_pretrained(tmp_path / "adapter")
    merged = load_model(ModelConfig(path=str(tmp_path / "adapter")))
    with torch.no_grad():
        plain, expected, found = (model(IDS).logits for model in (load_model(config), adapted, merged))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert (found - plain).abs().max() > 1
    assert [name for name, _ in merged.named_parameters() if "lora" in name] == []


def test_a_wrapper_is_adapted_in_its_language_model_alone(tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(save_random_model(tmp_path, "gemma3"))
    assert outside_the_language_model(model) == ["model.vision_tower", "model.multi_modal_projector"]
    adapted = with_adapters(model, BASE, LoraConfig())
    trained = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    assert trained
    assert all(".language_model." in name for name in trained)
    assert 0.4 < adapted_share(adapted) < 1


def test_nothing_is_said_that_no_user_can_change(tmp_path: Path) -> None:
    path = save_random_model(tmp_path / "model")
    adapted = with_adapters(AutoModelForCausalLM.from_pretrained(path), BASE, LoraConfig())
    adapted.save_pretrained(str(tmp_path / "adapter"), save_embedding_layers=False)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        with_adapters(AutoModelForCausalLM.from_pretrained(path), BASE, LoraConfig())
        with_trained_adapters(AutoModelForCausalLM.from_pretrained(path), tmp_path / "adapter")
    assert [str(warning.message) for warning in said] == []
