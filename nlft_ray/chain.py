"""The whole chain: each stage reads the folder that the one before wrote, and a complete one is not run again.

run_dir/
  questions  responses  examples  scored     what is learned from
  trained/POLICY  models/POLICY              what came out
  test_questions  predictions/POLICY         how right it is; predictions/before: how right it was
  report
  refresh/POLICY/after-epoch-N/              `refresh`: the model by then, and the examples scored again with it
  round-N/POLICY/                            `rounds`: a folder like this one, begun with the last round's model
"""

import datetime
import time
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from nlft_ray.config import (
    ExportConfig,
    ModelConfig,
    PoolConfig,
    RunConfig,
    Strict,
    TrainOptions,
)
from nlft_ray.errors import UserError
from nlft_ray.log import log
from nlft_ray.notebook import html_table
from nlft_ray.stages import STAGES
from nlft_ray.stages.train.trackers import check_trackers
from nlft_ray.storage.folder import Folder
from nlft_ray.tables.manifest import StageResult


class PolicyOutcome(Strict):
    """The stages of one policy in one round: from its examples to its model's accuracy."""

    round: int
    """Counts from 1."""
    policy: str
    examples: StageResult
    scored: StageResult
    """The scores that the first epoch was trained on."""
    train: StageResult
    """With `refresh`, the last epoch's."""
    export: StageResult
    before: StageResult | None
    """Accuracy of the model that this round began with."""
    evaluate: StageResult | None
    training_seconds: float

    def row(self) -> tuple[str, ...]:
        """Its line in a run's table: policy, round, examples, verdicts, accuracy before and after, seconds."""
        training = self.train.manifest
        counts = training.counts
        return (
            self.policy,
            str(self.round),
            f"{counts['examples']:.0f} of {training.rows_in}",
            f"{counts['correct']:.0f} + {counts['incorrect']:.0f}",
            _accuracy(self.before),
            _accuracy(self.evaluate),
            f"{self.training_seconds:.0f}",
        )


class RunResult(Strict):
    """The stages of a whole run: what `run` returns."""

    config: RunConfig
    examples: StageResult
    scored: StageResult
    before: StageResult | None
    outcomes: list[PolicyOutcome]
    """Round after round, in each the policies in their order."""
    report: StageResult
    seconds: float

    @property
    def title(self) -> str:
        return "Accuracy on the test questions, with 95 % intervals" if self.before else "Trained models"

    def headings(self) -> tuple[str, ...]:
        return self._line(("policy", "round", "examples", "correct + incorrect", "before", "after", "training, s"))

    def rows(self) -> list[tuple[str, ...]]:
        """A line for each policy in each round."""
        return [self._line(outcome.row()) for outcome in self.outcomes]

    def _line(self, line: tuple[str, ...]) -> tuple[str, ...]:
        return line if self.config.rounds > 1 else (line[0], *line[2:])  # without the only round

    def _repr_html_(self) -> str:
        """The table that a notebook shows."""
        return html_table(self.title, self.headings(), self.rows())


def _accuracy(result: StageResult | None) -> str:
    if result is None:
        return "not measured"
    counts = result.manifest.counts
    low, high = (100 * counts[name] for name in ("accuracy_low", "accuracy_high"))
    return f"{100 * counts['accuracy']:.1f} % ({low:.1f} to {high:.1f})"


def run(config: RunConfig) -> RunResult:
    """Run the stages in order: questions, responses, examples, scores; then each policy's model; then further rounds.

    The chain enters where the imported data fit: questions are sampled, responses judged, examples scored.

    Raises:
        UserError: as a stage raises it; or further rounds are asked for and there are no questions to answer anew; or
            the hub does not take a model.
    """
    began = time.monotonic()
    check_trackers(config.train.report_to)  # before the hours that come before training
    first = _Round(config, 1, Folder(config.run_dir), config.model)
    imported = first.imported("questions", config.questions)
    _check_rounds(config, imported)
    examples = first.examples(imported)
    scored = first.scored(examples)
    test = first.imported("test_questions", config.test_questions) if config.test_questions else None
    before = first.evaluated("before", first.model, test)
    latest = [first.outcome(policy, examples, scored, test, before) for policy in config.policies]
    outcomes = [*latest, *_later_rounds(first.dated(config), latest, imported, test)]
    report = first.report()
    _push(config, outcomes[-len(config.policies) :])
    return RunResult(
        config=config,
        examples=examples,
        scored=scored,
        before=before,
        outcomes=outcomes,
        report=report,
        seconds=time.monotonic() - began,
    )


def _check_rounds(config: RunConfig, imported: StageResult) -> None:
    table = imported.manifest.identity.table
    if config.rounds > 1 and table != "questions":
        raise UserError(
            f"rounds: {config.rounds} rounds answer the questions anew with each round's model, but questions.source "
            f"brings {table}. Import questions, or set rounds=1."
        )


def _later_rounds(
    config: RunConfig, latest: list[PolicyOutcome], questions: StageResult, test: StageResult | None
) -> Iterator[PolicyOutcome]:
    """Every policy goes its own way from the model that the round before left."""
    for number in range(2, config.rounds + 1):
        for index, (policy, outcome) in enumerate(zip(config.policies, latest, strict=True)):
            folder = Folder(config.run_dir) / f"round-{number}" / policy.name
            this = _Round(config, number, folder, _exported(config.model, outcome.export))
            examples = this.examples(questions)
            latest[index] = this.outcome(policy, examples, this.scored(examples), test, outcome.evaluate)
            this.report()
            yield latest[index]


def _exported(model: ModelConfig, export: StageResult) -> ModelConfig:
    return model.model_copy(update={"path": export.output, "revision": None, "commit": None})


def _push(config: RunConfig, outcomes: list[PolicyOutcome]) -> None:
    """Upload each policy's last model, if that was asked for: by now its card says how right it is."""
    name = config.export.push_to_hub
    if name is None:
        return
    for outcome in outcomes:
        own_name = name if len(outcomes) == 1 else f"{name}-{outcome.policy}"
        options = dict(config.export) | {"push_to_hub": own_name}
        STAGES["export"].load_function()(
            ExportConfig(**options, input=outcome.train.output, output=outcome.export.output)
        )


class _Round:
    """From questions to models, once: gives every stage its input, its output folder, and what the stages share."""

    def __init__(self, config: RunConfig, number: int, folder: Folder, model: ModelConfig):
        self._config, self._number, self._folder, self.model = config, number, folder, model
        self._date = config.prompts.date

    def dated(self, config: RunConfig) -> RunConfig:
        """The configuration with the date that prompts were told in this round, if any were: a run has one date."""
        return config.model_copy(update={"prompts": config.prompts.model_copy(update={"date": self._date})})

    def stage(self, name: str, options: BaseModel, folder: str, **fields: Any) -> StageResult:
        """Run one stage into a folder of the round."""
        stage = STAGES[name]
        kind = stage.load_config()
        shared: dict[str, Any] = {
            field: getattr(self.dated(self._config), field)
            for field in ("prompts", "pool", "ray_address", "overwrite", "max_reject_fraction")
            if field in kind.model_fields
        }
        if "model" in kind.model_fields:
            shared["model"] = self.model
        values: dict[str, Any] = {**dict(options), **shared, "output": str(self._folder / folder), **fields}
        log(f"{name} → {values['output']}")
        result = stage.load_function()(kind(**values))
        if result.reused:
            log(f"{name}: already complete")
        self._go_on_as(result.manifest.identity.config)
        return result

    def _go_on_as(self, begun: Mapping[str, Any]) -> None:
        """Take the date that a stage told, and the commit of its model: a run has one of each.

        The stage has them from its plan when it is started again, and so have all after it.
        """
        if date := begun.get("prompts", {}).get("date"):
            self._date = datetime.date.fromisoformat(date)
        model = begun.get("model", {})
        if isinstance(model, Mapping) and model.get("path") == self.model.path and model.get("commit"):
            self.model = self.model.model_copy(update={"commit": model["commit"]})

    def imported(self, folder: str, options: BaseModel) -> StageResult:
        return self.stage("import", options, folder)

    def examples(self, imported: StageResult) -> StageResult:
        config, result = self._config, imported
        if result.manifest.identity.table == "questions":
            # other draws than the round before, whose model may hardly differ
            draws = config.sample.model_copy(update={"seed": config.sample.seed + self._number - 1})
            pool = _pool_of_a_server(config.pool) if config.sample.server else config.pool
            result = self.stage("sample", draws, "responses", input=result.output, pool=pool)
        if result.manifest.identity.table == "responses":
            pool = _pool_of_a_server(config.pool) if config.judge.server else config.pool
            result = self.stage("judge", config.judge, "examples", input=result.output, pool=pool)
        return result

    def scored(self, examples: StageResult, folder: str = "scored", **fields: Any) -> StageResult:
        return self.stage("score", self._config.score, folder, input=examples.output, **fields)

    def evaluated(self, name: str, model: ModelConfig, test: StageResult | None) -> StageResult | None:
        if test is None:
            return None
        options = self._config.evaluate
        return self.stage("evaluate", options, f"predictions/{name}", input=test.output, model=model)

    def report(self) -> StageResult:
        return self.stage("report", self._config.report, "report", input=self._folder.uri)

    def outcome(
        self,
        policy: Any,
        examples: StageResult,
        scored: StageResult,
        test: StageResult | None,
        before: StageResult | None,
    ) -> PolicyOutcome:
        trainings = self._trainings(policy, examples, scored)
        train, export = trainings[-1]
        return PolicyOutcome(
            round=self._number,
            policy=policy.name,
            examples=examples,
            scored=scored,
            train=train,
            export=export,
            before=before,
            evaluate=self.evaluated(policy.name, _exported(self.model, export), test),
            training_seconds=sum(train.manifest.seconds for train, _ in trainings),
        )

    def _trainings(
        self, policy: Any, examples: StageResult, scored: StageResult
    ) -> list[tuple[StageResult, StageResult]]:
        """Weights and model of each training: one, or with `refresh` one for each epoch."""
        name, trainings = policy.name, _epochs(self._config.train) if self._config.refresh else [self._config.train]
        results: list[tuple[StageResult, StageResult]] = []
        for epoch, options in enumerate(trainings, start=1):
            step = f"refresh/{name}/after-epoch-{epoch}"
            last = epoch == len(trainings)
            model = _exported(self.model, results[-1][1]) if results else self.model
            trained, exported = (f"trained/{name}", f"models/{name}") if last else (f"{step}/trained", f"{step}/model")
            inputs = {"input": scored.output, "policy": policy, "model": model, "backend": self._config.pool.backend}
            train = self.stage("train", options, trained, **inputs)
            export = self.stage("export", self._config.export, exported, input=train.output, push_to_hub=None)
            results.append((train, export))
            if not last:
                scored = self.scored(examples, f"{step}/scored", model=_exported(model, results[-1][1]))
        return results


def _pool_of_a_server(pool: PoolConfig) -> PoolConfig:
    """The pool of a stage that asks a server: its actors only wait for answers, so they take any node and no GPU."""
    small = {"label_selector": {}, "cpus_per_worker": 1, "gpus_per_worker": 0.0, "tensor_parallel": 1}
    return pool.model_copy(update=small)


def _epochs(options: TrainOptions) -> list[TrainOptions]:
    """A training cut into one for each epoch, from model to model.

    Each piece's learning rate is the schedule's in the middle of its epoch, and the warm-up stands in the first.
    Adam's moments and adapters begin anew with every piece: an adapter is part of the model by then.
    """
    if options.epochs == 1:
        return [options]
    from nlft_ray.stages.train.schedule import learning_rate  # imports numpy alone

    return [
        options.model_copy(
            update={
                "epochs": 1,
                "schedule": "constant",
                "warmup_fraction": min(options.warmup_fraction * options.epochs, 1.0) if epoch == 0 else 0.0,
                "learning_rate": learning_rate(
                    2 * epoch + 1,
                    steps=2 * options.epochs,
                    highest=options.learning_rate,
                    schedule=options.schedule,
                    warmup_fraction=0.0,
                ),
                "seed": options.seed + epoch,  # another order in every epoch
            }
        )
        for epoch in range(options.epochs)
    ]
