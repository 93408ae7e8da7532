"""The settings of a model that may be `auto`, and what they become.

The driver asks, and the answer stands in the output's identity.
"""

from collections.abc import Callable
from functools import partial

from nlft_ray.config import ModelConfig
from nlft_ray.config.shared import automatic_dtype
from nlft_ray.log import log


def automatic_settings(config: ModelConfig, on_gpu: Callable[[], bool]) -> dict[str, Callable[[], str]]:
    """The way in which each setting that may be `auto` is chosen; `on_gpu` says whether workers will have GPUs."""
    return {
        "model.dtype": lambda: automatic_dtype(on_gpu=on_gpu()),
        "model.attention": partial(_attention, config),
    }


def _attention(config: ModelConfig) -> str:
    from nlft_ray.models.loading import supported_attention  # torch and transformers, not needed where all is done

    chosen = supported_attention(config)
    if chosen != "sdpa":
        log(f"model.attention: transformers has no sdpa for {config.path}, so auto is {chosen}.")
    return chosen
