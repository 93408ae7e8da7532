"""Low-rank adapters on a model of any family: on its language model alone, where each can stand."""

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from nlft_ray import sandbox
from nlft_ray.config import LoraConfig, ModelConfig
from nlft_ray.errors import UserError

_RECURRENT = {"mamba", "mamba2", "falcon_mamba", "falcon_h1", "nemotron_h"}
_IN_ITS_KERNELS = {"out_proj", "conv1d", "x_proj", "dt_proj"}
"""Modules of these families whose weights fused kernels read, past any adapter."""


def with_adapters(model: PreTrainedModel, config: ModelConfig, lora: LoraConfig, seed: int = 0) -> Any:
    """The model with fresh adapters; `all-linear` are those of its language model, experts among them where PEFT can.

    Raises:
        UserError: the targets are not in the model, or cannot drop.
    """
    with _quiet():
        import peft

    torch.manual_seed(seed)  # every worker draws the same adapters
    settings = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # a float works as well
        lora_dropout=lora.dropout,
        target_modules=lora.targets,
        exclude_modules=_unfit(model) if lora.targets == "all-linear" else None,
        revision=config.revision,
    )
    linear = sorted(
        {name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    )
    try:
        with _quiet():
            # DeepSpeed keeps float32 copies of what it trains, so adapters can have the model's own type.
            adapted = peft.get_peft_model(model, settings, autocast_adapter_dtype=False)
    except ValueError as error:
        if "lora_dropout" in str(error):
            raise UserError(
                f"lora.dropout: the experts of {config.path} are one parameter each layer, whose adapters cannot drop: "
                "set lora.dropout=0, or lora.targets to modules outside the experts, such as [q_proj, v_proj]."
            ) from error
        raise UserError(
            f"lora.targets: {lora.targets} does not fit {config.path}, whose linear modules are called "
            f"{', '.join(linear)}. ({error})"
        ) from error
    adapted.peft_config["default"].base_model_name_or_path = _public_name(config)
    return adapted


def with_trained_adapters(model: PreTrainedModel, weights: Path) -> Any:
    """The model with the adapters of a folder."""
    with _quiet():
        from peft import PeftModel

        return PeftModel.from_pretrained(model, weights)


def merged(adapted: Any) -> PreTrainedModel:
    """The model with its adapters added to its weights, in float32 however these are held: small updates would drown
    in the rounding of bfloat16. One module at a time, so that there is no room needed for the whole in float32."""
    for module in adapted.modules():
        if hasattr(module, "lora_A"):
            dtype = next(value.dtype for name, value in module.named_parameters() if "lora_" not in name)
            module.float().merge()
            module.to(dtype)
    return adapted.unload().eval().requires_grad_(True)


@contextmanager
def _quiet() -> Iterator[None]:
    """Within, PEFT and what it imports do not tell of what no user can change.

    It mends some things by itself: patterns of experts it has not, matrices the other way. It asks transformers by a
    name that will go. And bitsandbytes, where it is installed, misses a kernel that only 4-bit weights on a CPU want.
    """
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        warnings.filterwarnings("ignore", "The following (rank|alpha)_pattern keys", RuntimeWarning)
        warnings.filterwarnings("ignore", "fan_in_fan_out is set to False", UserWarning)
        yield


def adapted_share(adapted: Any) -> float:
    """The share of the language model's parameters, embeddings and head included, that adapters change."""
    model = adapted.get_base_model()
    outside = tuple(f"{part}." for part in outside_the_language_model(model))
    all_sizes = {name: _size(parameter) for name, parameter in model.named_parameters() if not name.startswith(outside)}
    changed = 0
    for module in model.modules():
        if hasattr(module, "lora_A"):
            changed += _size(module.get_param() if hasattr(module, "get_param") else module.get_base_layer().weight)
    return changed / sum(size for name, size in all_sizes.items() if "lora_" not in name)


def _size(parameter: Any) -> int:
    """Numbers in a parameter, of which ZeRO-3 may have left this worker none."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def outside_the_language_model(model: PreTrainedModel) -> list[str]:
    """Names of a wrapper's modules for images or sounds, which texts never reach; empty for a model of texts."""
    decoder = model.get_decoder()
    inside = {*decoder.modules(), model.get_output_embeddings()}

    def walk(module: nn.Module, prefix: str) -> Iterator[str]:
        for name, child in module.named_children():
            if child not in inside:
                if inside.isdisjoint(child.modules()):
                    yield prefix + name
                else:
                    yield from walk(child, f"{prefix}{name}.")

    return [] if decoder is model else list(walk(model, ""))


def _unfit(model: PreTrainedModel) -> str | None:
    """Pattern of the modules that are linear and yet no place for an adapter."""
    parts = [rf"{re.escape(part)}\..*" for part in outside_the_language_model(model)]
    endings = {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and "Router" in type(module).__name__  # gives more than a product
    }
    if getattr(model.config, "model_type", None) in _RECURRENT:
        endings |= _IN_ITS_KERNELS
    parts += [rf"(.*\.)?{re.escape(ending)}" for ending in sorted(endings)]
    return "|".join(parts) or None


def _public_name(config: ModelConfig) -> str:
    """The name by which others find the base model: not where this machine's cache happens to hold it."""
    return str(sandbox.MODEL_FOLDER) if config.path == "sandbox" else config.path
