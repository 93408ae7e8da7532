"""A worker's model: held by its own process, or by several together."""

from collections.abc import Callable
from typing import Any, TypeVar, cast

from nlft_ray.config import EvaluateConfig, JudgeConfig, SampleConfig
from nlft_ray.config.shared import PoolConfig
from nlft_ray.models.generation import PromptedModel

T = TypeVar("T")


def replica_of(pool: PoolConfig, make: Callable[..., T], *arguments: Any) -> T:
    """An object that holds a model; under tensor parallelism a `Gang` that stands for it, whose members hold one each.

    Args:
        pool: the workers' settings.
        make: what makes the object: a class or a function of a module, for other processes import it.
        arguments: its arguments.

    Raises:
        UserError: as `make` raises it.
    """
    if pool.tensor_parallel == 1:
        return make(*arguments)
    from nlft_ray.execution.ray_gang import Gang  # other work needs no Ray

    return cast(T, Gang(pool, make, arguments))


def prompted_model(config: SampleConfig | JudgeConfig | EvaluateConfig) -> PromptedModel:
    """The target model as a stage prompts it, by its engine.

    Raises:
        UserError: as `PromptedModel` raises it.
    """
    pool = config.pool
    return replica_of(
        pool,
        PromptedModel,
        config.model,
        config.prompts,
        config.batch_size,
        pool.tensor_parallel,
        config.engine,
        config.server,
    )
