"""The examples that a method is trained on, where they are not the model's own: a JSONL file for `nlft-ray import`."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import nlft_ray
from experiments.config import Cell, Experiment
from nlft_ray.config import ImportConfig, RunConfig, SampleConfig
from nlft_ray.sandbox import world
from nlft_ray.storage.folder import Folder
from nlft_ray.tables.manifest import StageResult
from nlft_ray.tables.schema import CORRECT
from nlft_ray.tables.shards import read_rows

Row = Mapping[str, Any]

_COLUMNS_OF_QUESTIONS = ("id", "instruction", "question", "standard_answer")
_COLUMNS_OF_EXAMPLES = (*_COLUMNS_OF_QUESTIONS, "response", "verdict", "judgment")


def worked(experiment: Experiment, cell: Cell, settings: RunConfig) -> dict[str, Any]:
    """Import settings of the worked solutions of the cell's questions."""
    folder = Folder(cell.folder(experiment)) / "worked"
    solutions = {}
    if experiment.worked == "sandbox":
        options = settings.questions
        problems = world.problems(options.split, options.limit or 0, options.seed)
        solutions = {problem.id: problem.steps for problem in problems}
    rows = list(read_rows(Folder(_questions(settings, folder).output)))
    solved = [{**row, "response": solutions.get(row["id"], row["standard_answer"]), "verdict": CORRECT} for row in rows]
    return _written([row for row in solved if row["response"]], folder, "solutions")


def star(experiment: Experiment, cell: Cell, settings: RunConfig) -> tuple[dict[str, Any] | None, list[StageResult]]:
    """Import settings of the model's correct responses, those of second tries with the answer in the prompt included
    (STaR, arXiv 2203.14465), None where there are none; and the samplings, for their costs."""
    folder = Folder(cell.folder(experiment)) / "star"
    tries = [_sampled(settings, _questions(settings, folder).output, folder / "first_tries")]
    rows = list(read_rows(Folder(tries[0].output)))
    right = [row for row in rows if row["verdict"] == CORRECT]
    if len(right) < len(rows):
        missed = [row for row in rows if row["verdict"] != CORRECT]
        source = _written(missed, folder, "missed", _COLUMNS_OF_QUESTIONS)
        asked = nlft_ray.import_data(ImportConfig(**source, output=str(folder / "missed")))
        prompts = settings.prompts.model_copy(update={"base": settings.prompts.standard})
        tries.append(_sampled(settings.model_copy(update={"prompts": prompts}), asked.output, folder / "second_tries"))
        right += [row for row in read_rows(Folder(tries[1].output)) if row["verdict"] == CORRECT]
    return (_written(right, folder, "correct") if right else None), tries


def _questions(settings: RunConfig, folder: Folder) -> StageResult:
    """The cell's questions, the same for every method."""
    return nlft_ray.import_data(ImportConfig(**dict(settings.questions), output=str(folder / "asked")))


def _sampled(settings: RunConfig, questions: str, output: Folder) -> StageResult:
    shared = {name: getattr(settings, name) for name in ("model", "prompts", "pool", "ray_address")}
    return nlft_ray.sample(SampleConfig(**dict(settings.sample), **shared, input=questions, output=str(output)))


def _written(
    rows: Iterable[Row], folder: Folder, name: str, columns: Sequence[str] = _COLUMNS_OF_EXAMPLES
) -> dict[str, Any]:
    """Write rows as JSONL, whole or not at all; the import settings that read them."""
    lines = [json.dumps({column: row.get(column) for column in columns}, ensure_ascii=False) for row in rows]
    folder.write_text(f"{name}.jsonl", "".join(f"{line}\n" for line in lines))
    return {
        "source": str(folder / f"{name}.jsonl"),
        "format": "columns",
        "columns": {column: column for column in columns},
    }
