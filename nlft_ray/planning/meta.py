"""A model's shape, read from its configuration on torch's meta device: no weight is loaded."""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig

from nlft_ray import sandbox
from nlft_ray.config import LoraConfig, ModelConfig
from nlft_ray.errors import UserError
from nlft_ray.models.adapters import with_adapters
from nlft_ray.models.copies import local_copy
from nlft_ray.models.folders import base_of
from nlft_ray.models.loading import auto_class
from nlft_ray.models.sharding import sharding
from nlft_ray.planning.shape import Adapters, Shape
from nlft_ray.storage.folder import Folder

_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")


def read_shape(config: ModelConfig, tensor_parallel: int = 1) -> Shape:
    """Build the model without memory (torch's meta device) and count.

    Raises:
        UserError: there is no such configuration, it is not of a dense decoder, or so many processes cannot share it.
    """
    model: Any = meta_model(config)
    sharding(config, model.config, tensor_parallel)
    text: Any = model.config.get_text_config()
    heads = text.num_attention_heads
    head_width = getattr(text, "head_dim", None) or text.hidden_size // heads
    sizes = [parameter.numel() for parameter in model.parameters()]
    layer = _first_layer(model, text.num_hidden_layers)
    return Shape(
        layers=text.num_hidden_layers,
        width=text.hidden_size,
        mlp_width=getattr(text, "intermediate_size", None) or getattr(text, "n_inner", None) or 4 * text.hidden_size,
        heads=heads,
        query_width=heads * head_width,
        key_width=(getattr(text, "num_key_value_heads", None) or heads) * head_width,
        gated=any("gate" in name for name, _ in layer.named_parameters()),
        vocabulary=text.vocab_size,
        positions=getattr(text, "max_position_embeddings", None),
        parameters=sum(sizes),
        layer_parameters=sum(parameter.numel() for parameter in layer.parameters()),
        largest_parameter=max(sizes),
    )


def read_adapters(config: ModelConfig, lora: LoraConfig) -> Adapters:
    """Put adapters on the model without memory, and count.

    Raises:
        UserError: the targets are not in the model.
    """
    model: Any = meta_model(config)
    layers = model.config.get_text_config().num_hidden_layers
    try:
        with torch.device("meta"):
            adapted = with_adapters(model, config, lora)
    except UserError as error:
        raise UserError(f"train.{error}") from error
    matrices = [(name, parameter) for name, parameter in adapted.named_parameters() if parameter.requires_grad]
    ranks = sum(parameter.shape[0] for name, parameter in matrices if "lora_A" in name)
    return Adapters(sum(parameter.numel() for _, parameter in matrices), ranks // layers)


def meta_model(config: ModelConfig) -> nn.Module:
    """The model on torch's meta device: shapes without numbers.

    Raises:
        UserError: as `read_shape`.
    """
    if "://" in config.path or Path(config.path).is_dir():
        config = base_of(config)  # the shape of an adapter is its base's
    path = _path(config)
    try:
        settings = AutoConfig.from_pretrained(
            path, revision=config.revision, trust_remote_code=config.trust_remote_code
        )
        _check_dense(config.path, settings.get_text_config())
        with torch.device("meta"):
            model: nn.Module = auto_class(settings).from_config(settings, trust_remote_code=config.trust_remote_code)
        return model
    except (OSError, ValueError, KeyError, AttributeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"model.path: {config.path} has no configuration that can be planned for: {reason} "
            "Name a folder with a config.json, or a model on the hub."
        ) from error


def _path(config: ModelConfig) -> str:
    """Path or name that transformers finds the model by."""
    if config.path == "sandbox":
        return str(sandbox.MODEL_FOLDER)
    return str(local_copy(Folder(config.path), ["*.json", "*.py"])) if "://" in config.path else config.path


def _check_dense(path: str, text: Any) -> None:
    experts = next((getattr(text, name) for name in _EXPERTS if getattr(text, name, None)), 1)
    if experts > 1:
        raise UserError(
            f"model.path: {path} is a mixture of {experts} experts. plan knows dense models only: how much memory "
            "experts take depends on where their tokens go. Try score and train on one device with a few rows."
        )


def _first_layer(model: nn.Module, layers: int) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == layers:
            return module[0]
    raise ValueError(f"no list of {layers} layers in it.")
