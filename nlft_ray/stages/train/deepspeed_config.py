"""DeepSpeed's configuration: ours, and further keys of the user's."""

from collections.abc import Mapping
from typing import Any

from nlft_ray.config import TrainOptions
from nlft_ray.errors import UserError

_OURS = {
    "train_batch_size": "batch_size",
    "train_micro_batch_size_per_gpu": "micro_batch_size_per_worker",
    "gradient_accumulation_steps": "batch_size and micro_batch_size_per_worker",
    "gradient_clipping": "max_gradient_norm",
    "optimizer": "learning_rate and weight_decay",
    "scheduler": "schedule and warmup_fraction",
    "bf16": "model.dtype",
    "fp16": "model.dtype",
    "amp": "model.dtype",
    "torch_autocast": "model.dtype",
    "data_types": "model.dtype",
    "prescale_gradients": "normalisation",
    "gradient_predivide_factor": "normalisation",
    "zero_optimization.stage": "zero_stage",
    "tensorboard": "report_to",
    "wandb": "nothing: metrics go to OUTPUT/metrics.jsonl",
    "csv_monitor": "nothing: metrics go to OUTPUT/metrics.jsonl",
}
"""Keys that nlft-ray sets itself, and the option that takes their place."""
_NEEDS_STAGE = {"zero_optimization.offload_optimizer": 1, "zero_optimization.offload_param": 3}
"""Keys, and the lowest ZeRO stage that heeds them."""


def check_deepspeed_keys(extra: Mapping[str, Any], zero_stage: int) -> None:
    """Refuse keys that are ours, and those that DeepSpeed would ignore.

    Raises:
        UserError: names every such key, and what to do instead.
    """
    problems = [f"nlft-ray sets deepspeed.{key} itself; use {_OURS[key]}." for key in _OURS if _has(extra, key)]
    problems += [
        f"deepspeed.{key} needs zero_stage={stage}{' or more' if stage < 3 else ''}, and it is {zero_stage}."
        for key, stage in _NEEDS_STAGE.items()
        if _has(extra, key) and zero_stage < stage
    ]
    if problems:
        raise UserError("configuration:\n" + "\n".join(f"  {problem}" for problem in problems))


def deepspeed_config(options: TrainOptions, bfloat16: bool, micro_batch_size: int, micro_steps: int) -> dict[str, Any]:
    """The configuration for `deepspeed.initialize`.

    Raises:
        UserError: `options.deepspeed` holds a key that is ours, or one that needs another `zero_stage`.
    """
    check_deepspeed_keys(options.deepspeed, options.zero_stage)
    offloaded = _has(options.deepspeed, "zero_optimization.offload_optimizer")
    ours = {
        "train_micro_batch_size_per_gpu": micro_batch_size,
        "gradient_accumulation_steps": micro_steps,
        "gradient_clipping": options.max_gradient_norm,
        # In bfloat16, DeepSpeed keeps float32 copies of parameters and moments; with this, gradients add up in float32
        # too, over micro-batches and workers. Without ZeRO it cannot do so: stage 1 takes the place of stage 0 there.
        "bf16": {"enabled": bfloat16},
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",
        "zero_optimization": {"stage": max(options.zero_stage, 1) if bfloat16 else options.zero_stage},
        # DeepSpeed's own Adam would be compiled at the first start, which takes minutes and a compiler; on a GPU
        # it is no faster than torch's. Only offloaded optimizer states need it.
        "optimizer": {
            "type": "AdamW",
            "params": {
                "lr": options.learning_rate,
                "weight_decay": options.weight_decay,
                "torch_adam": not offloaded,
            },
        },
        "steps_per_print": 2**31 - 1,
    }
    return _merged(ours, options.deepspeed)


def _has(values: Any, key: str) -> bool:
    for part in key.split("."):
        if not isinstance(values, Mapping) or part not in values:
            return False
        values = values[part]
    return True


def _merged(ours: Mapping[str, Any], extra: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(ours)
    for key, value in extra.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merged(merged[key], value) if both else value
    return merged
