"""Tiny models with random weights of several architectures, with a byte tokenizer that can spell anything."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import AutoConfig, PreTrainedTokenizerFast

from nlft_ray.models.loading import auto_class

CHAT_TEMPLATE = (
    "{% for message in messages %}<{{ message.role }}>{{ message.content }}<end>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
SPECIAL = ["<pad>", "<end>", "<system>", "<user>", "<assistant>"]

_SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "initializer_range": 0.3}
_GATED = {"intermediate_size": 64, "num_key_value_heads": 2, "max_position_embeddings": 512}
_EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 24}
_WINDOW = {"sliding_window": 40}  # shorter than most texts of the tests
_LATENT = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
_SHAPES: dict[str, dict[str, Any]] = {
    "llama": _GATED,
    "qwen3": _GATED | {"head_dim": 8},
    "gpt2": {"n_positions": 512},
    # its logits are those of the head, scaled
    "cohere": _GATED | {"logit_scale": 0.5},
}
ARCHITECTURES = sorted(_SHAPES)
"""A few that differ in much."""
_SHAPES |= {
    "mistral": _GATED | _WINDOW,
    "mixtral": _GATED | _EXPERTS | {"num_local_experts": 4},
    "qwen2": _GATED,
    "qwen3_moe": _GATED | _EXPERTS | {"head_dim": 8, "num_experts": 4},
    "gemma2": _GATED | _WINDOW | {"head_dim": 8, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 4.0},
    "gemma3_text": _GATED | _WINDOW | {"head_dim": 8, "layer_types": ["sliding_attention", "full_attention"]},
    # a wrapper, whose language model is one part of it
    "gemma3": {"text_config": _GATED | _WINDOW | _SMALL | {"head_dim": 8, "vocab_size": 261}}
    | {"vision_config": _SMALL | {"intermediate_size": 64, "image_size": 28, "patch_size": 14}},
    "mistral3": {"text_config": _GATED | _SMALL | {"model_type": "mistral", "head_dim": 8, "vocab_size": 261}}
    | {"vision_config": _SMALL | {"model_type": "pixtral", "intermediate_size": 64, "image_size": 28}},
    "phi": _GATED,
    "phi3": _GATED | _WINDOW,
    "gpt_oss": _GATED
    | _EXPERTS
    | _WINDOW
    | {"head_dim": 8, "num_local_experts": 4, "rope_parameters": {"rope_type": "default"}},
    "olmo2": _GATED,
    "granite": _GATED | {"logits_scaling": 4.0, "attention_multiplier": 0.3},
    "gpt_neox": {"intermediate_size": 64, "max_position_embeddings": 512},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32, "max_position_embeddings": 512},
    "bloom": {},
    "falcon": {"max_position_embeddings": 512},
    "stablelm": _GATED,
    "glm4": _GATED | {"head_dim": 8},
    "smollm3": _GATED,
    "deepseek_v3": _GATED
    | _EXPERTS
    | _LATENT
    | {"num_key_value_heads": 4, "n_routed_experts": 4, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1},
    "lfm2": _GATED | {"layer_types": ["conv", "full_attention"]},
    "llama4_text": _GATED
    | _EXPERTS
    | {"head_dim": 8, "num_local_experts": 4, "intermediate_size_mlp": 64}
    | {"attention_chunk_size": 40, "floor_scale": 32, "no_rope_layers": [1, 0]},
    "mamba": {"state_size": 8},
}
FAMILIES = sorted(_SHAPES)


def byte_tokenizer(chat_template: str | None = CHAT_TEMPLATE) -> PreTrainedTokenizerFast:
    """256 bytes and five special tokens; a multi-byte character is several tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*SPECIAL, *alphabet])}
    tokenizer = Tokenizer(BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<end>",
        additional_special_tokens=SPECIAL[2:],
        chat_template=chat_template,
        clean_up_tokenization_spaces=False,
    )


def save_random_model(
    folder: Path,
    architecture: str = "llama",
    *,
    seed: int = 0,
    chat_template: str | None = CHAT_TEMPLATE,
    **changes: Any,
) -> str:
    """A model folder; equal arguments make equal weights, large enough for sharp probabilities.

    `changes` are of the model's configuration.
    """
    torch.manual_seed(seed)
    tokenizer = byte_tokenizer(chat_template)
    config = AutoConfig.for_model(
        architecture,
        vocab_size=len(tokenizer),
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **(_SMALL | _SHAPES[architecture] | changes),
    )
    auto_class(config).from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def plain_model(folder: str) -> Any:
    """What transformers alone makes of a model's folder."""
    return auto_class(AutoConfig.from_pretrained(folder)).from_pretrained(folder).eval()
