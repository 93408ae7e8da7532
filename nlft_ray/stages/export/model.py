"""The trained model as one folder: adapters merged, weights, tokenizer and generation settings side by side."""

import shutil
import uuid
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from nlft_ray.config import ModelConfig
from nlft_ray.models import load_model, load_tokenizer

_ADAPTER = "adapter_config.json"


def trained_model(base: ModelConfig, weights: Path, dtype: torch.dtype | None = None) -> Any:
    """The model with its trained weights, on the CPU, in evaluation mode.

    Adapters are merged in float32, whatever type comes out: small updates would drown in the rounding of bfloat16.
    """
    dtype = dtype or weights_dtype(weights)
    if not (weights / _ADAPTER).is_file():
        return AutoModelForCausalLM.from_pretrained(
            weights, dtype=dtype, use_safetensors=True, trust_remote_code=base.trust_remote_code
        ).eval()
    from peft import PeftModel

    model: Any = load_model(base.model_copy(update={"dtype": "float32"}), torch.device("cpu"))
    adapted: Any = PeftModel.from_pretrained(model, weights)
    return adapted.merge_and_unload().to(dtype).eval()


def save_model_folder(model: Any, base: ModelConfig, output: Path) -> None:
    """Write everything beside its place, then move it there; what an interrupted export left is replaced."""
    written = output / f".{uuid.uuid4().hex}"
    try:
        model.save_pretrained(written)
        load_tokenizer(base).save_pretrained(written)
        for path in sorted(written.iterdir()):
            path.replace(output / path.name)
    finally:
        shutil.rmtree(written, ignore_errors=True)


def weights_dtype(weights: Path) -> torch.dtype:
    """The type that the weights were trained in."""
    from safetensors import safe_open

    with safe_open(min(weights.glob("*.safetensors")), framework="pt") as tensors:
        return tensors.get_tensor(next(iter(tensors.keys()))).dtype
