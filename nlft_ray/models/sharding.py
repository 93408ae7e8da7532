"""Tensor parallelism: of every layer, each of several processes holds a part, and they compute in step.

Which part is transformers' own plan for a family. Queries, keys and values are parted by heads; where a part is not
enough, the processes add up or gather what they have, so that hidden states and logits are whole in each of them.
"""

from math import gcd
from typing import Any

import transformers
from torch.distributed.tensor import DTensor
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.distributed import DistributedConfig

from nlft_ray.config import ModelConfig
from nlft_ray.errors import UserError


def sharding(config: ModelConfig, settings: PreTrainedConfig, processes: int) -> dict[str, Any]:
    """Arguments of `from_pretrained` for the part of this process, one of so many; empty for one alone.

    Args:
        config: the model.
        settings: its own configuration.
        processes: processes of this group, which torch.distributed knows by the time the model is loaded.

    Raises:
        UserError: transformers has no plan for the model, or not for so many processes.
    """
    if processes == 1:
        return {}
    setting = f"pool.tensor_parallel={processes}"
    if config.quantization is not None or getattr(settings, "quantization_config", None) is not None:
        raise UserError(f"{setting}: quantised weights are not shared among processes: leave out one of the two.")
    text = settings.get_text_config()
    plan: dict[str, str] = getattr(text, "base_model_tp_plan", None) or {}
    if not plan:
        raise UserError(
            f"{setting}: transformers {transformers.__version__} has no plan for sharing {config.path} among processes "
            f"(its family is {text.model_type}): leave it out. With pool.gpus_per_worker alone, one process spreads a "
            "model's layers over several GPUs."
        )
    if any(style == "colwise" and ("attn" in name or "attention" in name) for name, style in plan.items()):
        _check_heads(setting, config, text, processes)
    try:
        return {"distributed_config": DistributedConfig(tp_size=processes)}
    except TypeError as error:
        raise UserError(f"{setting}: transformers {transformers.__version__} is too old for it: take 5.19.") from error


def _check_heads(setting: str, config: ModelConfig, text: Any, processes: int) -> None:
    heads = text.num_attention_heads
    key_heads = getattr(text, "num_key_value_heads", None) or heads
    most = gcd(heads, key_heads)
    if most % processes:
        fitting = [str(number) for number in range(2, most + 1) if most % number == 0]
        advice = f"set {', '.join(fitting)}" if fitting else "leave it out"
        raise UserError(
            f"{setting}: the {heads} attention heads and {key_heads} key-value heads of {config.path} cannot be shared "
            f"evenly among {processes} processes: {advice}."
        )


def is_shared(model: PreTrainedModel) -> bool:
    """Whether this process has but a part of a model, which works in step with others."""
    return bool(getattr(model, "tp_size", None))


def check_head(model: PreTrainedModel, config: ModelConfig) -> None:
    """Check that a shared model's head is right, which transformers leaves open.

    Raises:
        UserError: its weights are those of embeddings that are whole here, while logits are gathered as if of a part.
    """
    embeddings: Any = model.get_input_embeddings()
    head: Any = model.get_output_embeddings()
    if head.weight is embeddings.weight and not isinstance(head.weight, DTensor):
        raise UserError(
            f"pool.tensor_parallel: {config.path} has one matrix for its embeddings and its head, and transformers "
            f"{transformers.__version__} shares only the head among processes: leave it out."
        )
