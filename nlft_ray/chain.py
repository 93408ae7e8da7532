"""The whole chain: each stage reads the folder that the one before wrote, and a complete one is not run again."""

import time
from typing import Any

from pydantic import BaseModel

from nlft_ray import stages
from nlft_ray.config import (
    EvaluateConfig,
    ExportConfig,
    ImportConfig,
    JudgeConfig,
    ModelConfig,
    ReportConfig,
    RunConfig,
    SampleConfig,
    ScoreConfig,
    Strict,
    TrainConfig,
)
from nlft_ray.manifest import StageResult
from nlft_ray.progress import log
from nlft_ray.storage import Folder


class PolicyOutcome(Strict):
    """What became of the model under one policy."""

    policy: str
    train: StageResult
    export: StageResult
    evaluate: StageResult | None


class RunResult(Strict):
    """What `run` returns."""

    config: RunConfig
    examples: StageResult
    scored: StageResult
    before: StageResult | None
    outcomes: list[PolicyOutcome]
    report: StageResult
    seconds: float


def run(config: RunConfig) -> RunResult:
    """Run the stages in order: questions, responses, examples, scores; then each policy's model.

    The chain enters where the imported data fit: questions are sampled, responses judged, examples scored.

    Raises:
        UserError: as a stage raises it.
    """
    began = time.monotonic()
    chain = _Chain(config)
    examples = chain.examples()
    scored = chain.stage("score", ScoreConfig, config.score, "scored", input=examples.output)
    test = chain.imported("test_questions", config.test_questions) if config.test_questions else None
    before = chain.evaluated("before", config.model, test)
    outcomes = [chain.policy(policy, scored, test) for policy in config.policies]
    report = chain.stage("report", ReportConfig, config.report, "report", input=config.run_dir)
    return RunResult(
        config=config,
        examples=examples,
        scored=scored,
        before=before,
        outcomes=outcomes,
        report=report,
        seconds=time.monotonic() - began,
    )


class _Chain:
    """Gives every stage its input, its output folder, and what the stages share."""

    def __init__(self, config: RunConfig):
        self._config = config
        self._folder = Folder(config.run_dir)

    def stage(self, name: str, kind: type[BaseModel], options: BaseModel, folder: str, **fields: Any) -> StageResult:
        """Run one stage into a folder of the run."""
        shared: dict[str, Any] = {
            field: getattr(self._config, field)
            for field in ("model", "prompts", "pool", "ray_address", "overwrite", "max_reject_fraction")
            if field in kind.model_fields
        }
        values: dict[str, Any] = {**dict(options), **shared, "output": str(self._folder / folder), **fields}
        log(f"{name} → {values['output']}")
        result = stages.STAGES[name].load_function()(kind(**values))
        if result.reused:
            log(f"{name}: already complete")
        return result

    def imported(self, folder: str, options: BaseModel) -> StageResult:
        return self.stage("import", ImportConfig, options, folder)

    def examples(self) -> StageResult:
        config = self._config
        result = self.imported("questions", config.questions)
        if result.manifest.identity.table == "questions":
            result = self.stage("sample", SampleConfig, config.sample, "responses", input=result.output)
        if result.manifest.identity.table == "responses":
            result = self.stage("judge", JudgeConfig, config.judge, "examples", input=result.output)
        return result

    def evaluated(self, name: str, model: ModelConfig, test: StageResult | None) -> StageResult | None:
        if test is None:
            return None
        options = self._config.evaluate
        return self.stage("evaluate", EvaluateConfig, options, f"predictions/{name}", input=test.output, model=model)

    def policy(self, policy: Any, scored: StageResult, test: StageResult | None) -> PolicyOutcome:
        config, name = self._config, policy.name
        trained = self.stage("train", TrainConfig, config.train, f"trained/{name}", input=scored.output, policy=policy)
        exported = self.stage("export", ExportConfig, config.export, f"models/{name}", input=trained.output)
        model = config.model.model_copy(update={"path": exported.output})
        return PolicyOutcome(
            policy=name,
            train=trained,
            export=exported,
            evaluate=self.evaluated(name, model, test),
        )
