"""What a model can do is tried, whatever its configuration says; where it cannot, its attention is left as it was."""

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from nlft_ray.models.abilities import (
    equal_but_for_rounding,
    hidden_and_logits,
    only_the_head_follows,
    start_packing,
    stores_prefixes,
)

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 64}
GATED = {"intermediate_size": 24, "num_key_value_heads": 1, "max_position_embeddings": 64, "head_dim": 8}
MODELS: dict[str, tuple[str, dict[str, Any], tuple[bool, bool, bool]]] = {
    # model type, its shape, whether it stores prefixes, reads packed texts, and ends with its head
    "llama": ("llama", GATED, (True, True, True)),
    "gpt2": ("gpt2", {"n_positions": 64}, (True, True, True)),
    "mistral, with a sliding window": ("mistral", GATED | {"sliding_window": 8}, (True, True, True)),
    "cohere, which scales its logits": ("cohere", GATED | {"logit_scale": 0.25}, (True, True, False)),
    "gemma2, which caps its logits": ("gemma2", GATED | {"final_logit_softcapping": 2.0}, (True, True, False)),
    "falcon, by a mask": ("falcon", {}, (True, True, True)),
    "falcon, with ALiBi": ("falcon", {"alibi": True}, (True, False, True)),
    "bloom, with ALiBi": ("bloom", {}, (True, False, True)),
    "llama4, whose windows its masks alone know": (
        "llama4_text",
        GATED | {"intermediate_size_mlp": 24, "num_local_experts": 2, "attention_chunk_size": 8},
        (True, False, True),
    ),
    "lfm2, with convolutions": ("lfm2", GATED | {"layer_types": ["conv", "full_attention"]}, (False, False, True)),
    "mamba, a recurrence": ("mamba", {"state_size": 4}, (False, False, True)),
}


def random_model(kind: str, shape: dict[str, Any], attention: str | None = None) -> PreTrainedModel:
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**SMALL, "initializer_range": 0.3, **shape})
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    return model.eval()


@pytest.mark.parametrize("name", MODELS)
def test_abilities_of_some_architectures(name: str) -> None:
    kind, shape, abilities = MODELS[name]
    model = random_model(kind, shape)
    before = model.config._attn_implementation
    assert (stores_prefixes(model), start_packing(model), only_the_head_follows(model)) == abilities
    if not abilities[1]:
        assert model.config._attn_implementation == before
        assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("cap", [None, 30.0])
def test_a_cap_is_seen_where_logits_are_too_small_to_show_it(cap: float | None, dtype: torch.dtype) -> None:
    model = random_model("gemma2", GATED | {"final_logit_softcapping": cap}).to(dtype)  # type: ignore[arg-type]
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(1e-3)
    assert only_the_head_follows(model) == (cap is None)


def test_a_way_that_raises_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model without exchangeable attention that makes something of its own from a mask."""
    model = random_model("falcon", {})
    plain = model.base_model.forward

    def particular(*args: Any, attention_mask: Any = None, **kwargs: Any) -> Any:
        if attention_mask is not None and attention_mask.ndim != 2:
            raise ValueError("too many values to unpack")
        return plain(*args, attention_mask=attention_mask, **kwargs)

    monkeypatch.setattr(model.base_model, "forward", particular)
    assert not start_packing(model)
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_model_that_mixes_texts_keeps_its_attention(attention: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that looks at what stands before, wherever its text begins."""
    model = random_model("llama", GATED, attention)
    layer = model.get_decoder().layers[0]
    plain = layer.forward

    def mixing(hidden: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return plain(hidden + hidden.roll(1, dims=1), *args, **kwargs)

    monkeypatch.setattr(layer, "forward", mixing)
    assert not start_packing(model)
    assert model.config._attn_implementation == attention


def test_rounding_is_told_from_difference() -> None:
    reference = torch.linspace(-10, 10, 50)
    assert equal_but_for_rounding(reference + 1e-3, reference, torch.float32)
    assert not equal_but_for_rounding(reference + 1e-2, reference, torch.float32)
    assert equal_but_for_rounding(reference + 0.5, reference, torch.bfloat16)
    assert not equal_but_for_rounding(reference * float("nan"), reference, torch.float32)


def test_the_heads_input_and_logits_are_the_models() -> None:
    model = random_model("cohere", GATED | {"logit_scale": 0.25})
    inputs = {"input_ids": torch.tensor([[1, 2, 3]])}
    with torch.inference_mode():
        hidden, logits = hidden_and_logits(model, inputs)
        assert torch.equal(hidden, model.base_model(**inputs).last_hidden_state)
        assert torch.equal(logits, model(**inputs).logits)
    assert not model.get_output_embeddings()._forward_pre_hooks
