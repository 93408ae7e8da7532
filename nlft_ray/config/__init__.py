"""The configuration of every stage: strict models whose field docstrings are the help texts.

A stage's own settings are its `…Options`; `…Config` adds where it reads, where it writes and the model, and is what
`nlft-ray <stage>` and `nlft_ray.<stage>(config)` take. `RunConfig` holds the options of all stages, for `nlft-ray run`.
"""

from nlft_ray.config.engines import GenerationOptions, JudgeServer, ModelServer
from nlft_ray.config.options import (
    EvaluateOptions,
    ExportOptions,
    ImportOptions,
    JudgeOptions,
    LoraConfig,
    PolicyConfig,
    ReportOptions,
    SampleOptions,
    ScoreOptions,
    TrainOptions,
)
from nlft_ray.config.planning import ClusterConfig, LengthsConfig, PlanConfig
from nlft_ray.config.shared import (
    ModelConfig,
    PoolConfig,
    PromptConfig,
    Strict,
)
from nlft_ray.config.stages import (
    EvaluateConfig,
    ExportConfig,
    ImportConfig,
    JudgeConfig,
    ReportConfig,
    RunConfig,
    SampleConfig,
    ScoreConfig,
    StageConfig,
    TrainConfig,
    WeightsConfig,
    WithModel,
    WithPool,
)

__all__ = [
    "ClusterConfig",
    "EvaluateConfig",
    "EvaluateOptions",
    "ExportConfig",
    "ExportOptions",
    "GenerationOptions",
    "ImportConfig",
    "ImportOptions",
    "JudgeConfig",
    "JudgeOptions",
    "JudgeServer",
    "LengthsConfig",
    "LoraConfig",
    "ModelConfig",
    "ModelServer",
    "PlanConfig",
    "PolicyConfig",
    "PoolConfig",
    "PromptConfig",
    "ReportConfig",
    "ReportOptions",
    "RunConfig",
    "SampleConfig",
    "SampleOptions",
    "ScoreConfig",
    "ScoreOptions",
    "StageConfig",
    "Strict",
    "TrainConfig",
    "TrainOptions",
    "WeightsConfig",
    "WithModel",
    "WithPool",
]
