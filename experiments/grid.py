"""The grid: in every cell one method after another, by the stages of nlft-ray, which skip what is complete."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import nlft_ray
from experiments.config import Cell, Experiment
from experiments.examples import star, worked
from experiments.memory import Peak, peak_memory
from experiments.methods import METHODS
from nlft_ray.config import EvaluateConfig, ImportConfig, ModelConfig, RunConfig
from nlft_ray.errors import UserError
from nlft_ray.log import log
from nlft_ray.storage.folder import Folder
from nlft_ray.tables.manifest import Manifest, StageResult, read_manifest
from nlft_ray.tables.schema import CORRECT
from nlft_ray.tables.shards import read_rows

_TABLES = {"sample": "responses", "judge": "examples", "score": "scored"}


@dataclass(frozen=True)
class Outcome:
    """What became of a method in a cell."""

    cell: Cell
    method: str
    predictions: Folder
    """The trained model's answers to the test questions; the untrained one's where there was nothing to train on."""
    seconds: Mapping[str, float]
    """Stage → its seconds, of those that the method needs."""
    generated_tokens: int
    """Tokens that went through the model to sample and to judge, prompts included."""
    rows_trained: int
    peak_bytes: int
    """Most resident memory of one process from the method's first stage to its model; 0 where nothing was trained."""


@dataclass(frozen=True)
class Results:
    """A finished grid."""

    experiment: Experiment
    before: Folder
    """The untrained model's answers to the test questions."""
    outcomes: Sequence[Outcome]


def run(experiment: Experiment) -> Results:
    """Run what is not complete. Killed at any moment and started again, it goes on where it was.

    Raises:
        UserError: as a stage raises it.
    """
    output = Folder(experiment.output)
    test = nlft_ray.import_data(ImportConfig(**dict(experiment.test_questions), output=str(output / "test_questions")))
    settings = experiment.settings(experiment.cells[0], experiment.methods[0])
    before = _evaluated(settings, settings.model, test, output / "before")
    outcomes = []
    for cell in experiment.cells:
        for method in experiment.methods:
            log(f"== {cell.examples} questions, seed {cell.seed}: {method}")
            outcomes.append(_Trial(experiment, cell, method).outcome(test, before))
    return Results(experiment, before, outcomes)


def _evaluated(settings: RunConfig, model: ModelConfig, test: StageResult, output: Folder) -> Folder:
    shared = {name: getattr(settings, name) for name in ("prompts", "pool", "ray_address")}
    nlft_ray.evaluate(
        EvaluateConfig(**dict(settings.evaluate), **shared, model=model, input=test.output, output=str(output))
    )
    return output


@dataclass(frozen=True)
class _Trial:
    """One method in one cell."""

    experiment: Experiment
    cell: Cell
    name: str

    def outcome(self, test: StageResult, before: Folder) -> Outcome:
        """Run the method; where it has nothing to train on, the model stays as it was."""
        method, folder = METHODS[self.name], Folder(self.cell.folder(self.experiment)) / METHODS[self.name].data
        settings, tries = self._settings()
        manifests = {name: one.manifest for name, one in zip(("sample", "hint"), tries, strict=False)}
        with peak_memory() as memory:
            result = _ran(settings) if settings else None
        if settings is None or result is None:
            return self._outcome(before, manifests, 0)
        for stage, table in _TABLES.items():
            if stage in method.needs and stage not in manifests:
                manifests[stage] = read_manifest(folder / table, table=table)
        (trained,) = result.outcomes
        manifests["train"] = trained.train.manifest
        model = settings.model.model_copy(update={"path": trained.export.output, "revision": None, "commit": None})
        answers = _evaluated(settings, model, test, folder / "predictions" / method.policy)
        return self._outcome(answers, manifests, _kept(folder, method.policy, memory, trained.train.reused))

    def _settings(self) -> tuple[RunConfig | None, list[StageResult]]:
        """Settings of the method's run, None where there is nothing to train on; and the samplings before it."""
        settings, tries = self.experiment.settings(self.cell, self.name), list[StageResult]()
        source: dict[str, Any] | None
        if METHODS[self.name].data == "own":
            return settings, tries
        if METHODS[self.name].data == "worked":
            source = worked(self.experiment, self.cell, settings)
        else:
            source, tries = star(self.experiment, self.cell, settings)
        return (self.experiment.settings(self.cell, self.name, questions=source) if source else None), tries

    def _outcome(self, predictions: Folder, manifests: Mapping[str, Manifest], peak_bytes: int) -> Outcome:
        generated = [manifests[stage].tokens for stage in ("sample", "hint", "judge") if stage in manifests]
        return Outcome(
            cell=self.cell,
            method=self.name,
            predictions=predictions,
            seconds={stage: manifest.seconds for stage, manifest in manifests.items()},
            generated_tokens=sum(generated),
            rows_trained=manifests["train"].rows_out if "train" in manifests else 0,
            peak_bytes=peak_bytes,
        )


def _ran(settings: RunConfig) -> Any:
    """The result of a run; None where its policy trains on correct responses alone, and there are none."""
    try:
        return nlft_ray.run(settings)
    except UserError:
        examples = Folder(settings.run_dir) / "examples"
        needs_correct = settings.policies[0].name == "rft" and examples.has("manifest.json")
        if needs_correct and not any(row["verdict"] == CORRECT for row in read_rows(examples)):
            return None
        raise


def _kept(folder: Folder, policy: str, memory: Peak, reused: bool) -> int:
    """The peak of memory as it was measured when the training ran, which a later start cannot measure again."""
    name = f"{policy}.peak_bytes"
    if not reused or not folder.has(name):
        folder.write_text(name, str(memory.bytes))
    return int(folder.read_text(name))
