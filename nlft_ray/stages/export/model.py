"""The trained model as one folder: weights, tokenizer and settings side by side; adapters merged, or alone."""

import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from nlft_ray.config import ModelConfig
from nlft_ray.errors import UserError
from nlft_ray.models.adapters import with_trained_adapters
from nlft_ray.models.folders import ADAPTER, ADAPTER_WEIGHTS
from nlft_ray.models.loading import auto_class, checkpoint_quantisation, load_model, load_tokenizer
from nlft_ray.storage.folder import Folder


def trained_model(base: ModelConfig, weights: Path, dtype: torch.dtype | None = None) -> Any:
    """The model with its trained weights, on the CPU, in evaluation mode.

    Adapters are merged in float32, whatever type comes out: small updates would drown in the rounding of bfloat16.
    """
    dtype = dtype or weights_dtype(weights)
    if not (weights / ADAPTER).is_file():
        settings = AutoConfig.from_pretrained(weights, trust_remote_code=base.trust_remote_code)
        whole_model: Any = auto_class(settings).from_pretrained(
            weights, dtype=dtype, use_safetensors=True, trust_remote_code=base.trust_remote_code
        )
        return whole_model.eval()
    whole = base.model_copy(update={"dtype": "float32", "quantization": None})
    model: Any = load_model(whole, torch.device("cpu"))
    if method := checkpoint_quantisation(base):
        try:
            model = model.dequantize()
            model._weight_conversions = None  # else writing would undo those of quantised weights
        except NotImplementedError as error:
            raise UserError(
                f"merge: the weights of {base.path} are quantised ({method}), and transformers has no way back from "
                "there. Set merge=false: the adapter alone is written, for use with that model."
            ) from error
    return with_trained_adapters(model, weights).merge_and_unload().to(dtype).eval()


def save_model_folder(model: Any, base: ModelConfig, output: Folder) -> None:
    """Write the whole model and its tokenizer."""
    with output.atomic_files() as written:
        model.save_pretrained(written)
        load_tokenizer(base).save_pretrained(written)


def save_adapter_folder(weights: Path, base: ModelConfig, output: Folder, dtype: torch.dtype | None = None) -> int:
    """Write the adapter and the base model's tokenizer; the number of the adapter's parameters.

    Raises:
        UserError: the training was of the whole model.
    """
    if not (weights / ADAPTER).is_file():
        raise UserError("merge: false asks for the adapter alone, but the whole model was trained: leave merge=true.")
    tensors = {name: tensor.to(dtype or tensor.dtype) for name, tensor in load_file(weights / ADAPTER_WEIGHTS).items()}
    with output.atomic_files() as written:
        save_file(tensors, written / ADAPTER_WEIGHTS, metadata={"format": "pt"})
        shutil.copyfile(weights / ADAPTER, written / ADAPTER)
        load_tokenizer(base).save_pretrained(written)
    return sum(tensor.numel() for tensor in tensors.values())


def weights_dtype(weights: Path) -> torch.dtype:
    """The type that the weights were trained in."""
    from safetensors import safe_open

    with safe_open(min(weights.glob("*.safetensors")), framework="pt") as tensors:
        return tensors.get_tensor(next(iter(tensors.keys()))).dtype
