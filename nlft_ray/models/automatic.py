"""The settings of a model that may be `auto`, and what they become.

The driver asks, and the answer stands in the output's identity.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

from nlft_ray.config import ModelConfig, WithModel
from nlft_ray.config.shared import automatic_dtype
from nlft_ray.log import log

Config = TypeVar("Config", bound=WithModel)


def automatic_settings(config: ModelConfig, on_gpu: Callable[[], bool]) -> dict[str, Callable[[], str]]:
    """The way in which each setting that may be `auto` is chosen; `on_gpu` says whether workers will have GPUs."""
    return {
        "model.dtype": lambda: automatic_dtype(on_gpu=on_gpu()),
        "model.attention": partial(_attention, config),
    }


def with_one_commit(config: Config, begun: Mapping[str, Any] | None) -> Config:
    """A stage's configuration with the commit of a model of the hub; `begun` is the model in the output's plan, if any.

    Raises:
        UserError: the hub cannot be asked, or does not know the model.
    """
    from nlft_ray.models.folders import with_commit  # with the hub's client, which other commands do without

    return config.model_copy(update={"model": with_commit(config.model, begun)})


def _attention(config: ModelConfig) -> str:
    from nlft_ray.models.loading import supported_attention  # torch and transformers, not needed where all is done

    chosen = supported_attention(config)
    if chosen != "sdpa":
        log(f"model.attention: transformers has no sdpa for {config.path}, so auto is {chosen}.")
    return chosen
