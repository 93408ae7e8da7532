"""The settings of a model that may be `auto`, and what they become.

The driver asks, and the answer stands in the output's identity.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from nlft_ray.config import GenerationOptions, ModelConfig, WithModel
from nlft_ray.config.engines import USUAL_BATCH_SIZE
from nlft_ray.config.shared import automatic_dtype
from nlft_ray.log import log

if TYPE_CHECKING:
    from nlft_ray.models.turns import Turns

Config = TypeVar("Config", bound=WithModel)
_BATCHES_OF_A_SHARD = {"transformers": 1, "vllm": 4}
"""Full batches in a shard, by engine: vLLM starts a text as soon as one ends, and idles only at a shard's end."""


IDS_MADE_ANEW = "made of the server's texts: it does not take and give token ids, so they may differ from what it wrote"
"""Note of a table whose responses a server gave as text."""


def automatic_settings(config: ModelConfig, on_gpu: Callable[[], bool]) -> dict[str, Callable[[], Any]]:
    """The way in which each setting that may be `auto` is chosen; `on_gpu` says whether workers will have GPUs."""
    return {
        "model.dtype": lambda: automatic_dtype(on_gpu=on_gpu()),
        "model.attention": partial(_attention, config),
    }


def settings_of_stage(config: Any, on_gpu: Callable[[], bool], turns: "Turns | None") -> dict[str, Callable[[], Any]]:
    """The way in which each setting of a table's stage is chosen that may be left open.

    `turns` is None where the stage renders no prompts with the model's tokenizer.
    """
    generates = isinstance(config, GenerationOptions)
    by_server = generates and config.server is not None
    chosen: dict[str, Callable[[], Any]] = {}
    if generates:
        chosen["batch_size"] = lambda: USUAL_BATCH_SIZE["gpu" if not by_server and on_gpu() else "cpu"]
    if turns is None:
        return chosen
    if by_server:
        return chosen | {"server.prompts": partial(_way_of_prompts, config, turns)} | turns.automatic()
    return chosen | automatic_settings(config.model, on_gpu) | turns.automatic()


def least_rows(config: Any, rows_per_input: int) -> int:
    """Rows that a shard must have so that the batches of its engine can be full; 0 where that is of no matter."""
    if not isinstance(config, GenerationOptions) or config.server is not None:
        return 0
    batches = _BATCHES_OF_A_SHARD[config.engine]
    return -(-(config.batch_size or 0) * batches // rows_per_input)


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


def _way_of_prompts(config: Any, turns: "Turns") -> str:
    from nlft_ray.models.engines.server import way_of_prompts

    return way_of_prompts(config.server, [turns.end.id])
