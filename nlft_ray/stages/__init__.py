"""The stages, one folder each: a worker that runs in process, and `job.py`, where Ray places it.

This file is the list of them. It imports none, so that reading the list costs nothing.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Stage:
    """Where a stage's function and configuration are found."""

    summary: str
    function: str  # module:function
    config: str  # class in nlft_ray.config
    positional: str | None = None  # setting that a first word without a key is for
    examples: str | None = None  # lines for the end of its help

    def load_function(self) -> Callable[[Any], Any]:
        module, _, name = self.function.partition(":")
        return getattr(importlib.import_module(module), name)

    def load_config(self) -> type[Any]:
        return getattr(importlib.import_module("nlft_ray.config"), self.config)


STAGES = {
    "import": Stage(
        "data of your own → questions, responses or examples",
        "nlft_ray.stages.importing.job:import_data",
        "ImportConfig",
    ),
    "sample": Stage("questions → responses with verdicts", "nlft_ray.stages.sample.job:sample", "SampleConfig"),
    "judge": Stage("responses → examples with judgments", "nlft_ray.stages.judge.job:judge", "JudgeConfig"),
    "score": Stage("examples → scored: facts about each token", "nlft_ray.stages.score.job:score", "ScoreConfig"),
    "train": Stage("scored → weights, fine-tuned by a policy", "nlft_ray.stages.train.job:train", "TrainConfig"),
    "weights": Stage(
        "scored → tokens with weights and signs, for other trainers",
        "nlft_ray.stages.train.weights:write_weights",
        "WeightsConfig",
    ),
    "export": Stage("weights → a Hugging Face model folder", "nlft_ray.stages.export.job:export", "ExportConfig"),
    "evaluate": Stage("test questions → accuracy", "nlft_ray.stages.evaluate.job:evaluate", "EvaluateConfig"),
    "report": Stage(
        "a run or a scored folder → one HTML file with its saliency map",
        "nlft_ray.stages.report.job:report",
        "ReportConfig",
        positional="input",
    ),
}
