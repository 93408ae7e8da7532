"""Answers a table of test questions greedily and checks the answers, in this process."""

from typing import Any

import pyarrow as pa

from nlft_ray.config import EvaluateConfig
from nlft_ray.core.answers import final_answer
from nlft_ray.execution.work import WorkResult
from nlft_ray.models.generation import Completion, Decoding, PromptedModel
from nlft_ray.stages.verifiers import load_verifier, problem_with_standard_answer
from nlft_ray.tables.schema import PREDICTIONS, problem_with_question

_NOTHING = Completion(ids=[], text="", ended=False)


class EvaluateWorker:
    """Every question counts: one that is too long for the model is a wrong prediction, never a dropped row."""

    schema = PREDICTIONS

    def __init__(self, config: EvaluateConfig):
        self._config = config
        self._verify = load_verifier(config.verifier)
        self._model = PromptedModel(config.model, config.prompts, config.batch_size)

    def __call__(self, table: pa.Table, seed: int) -> WorkResult:
        asked: list[dict[str, Any]] = []
        rejects: list[tuple[Any, str]] = []
        for question in table.to_pylist():
            problem = problem_with_question(question) or problem_with_standard_answer(
                self._config.verifier, question["standard_answer"]
            )
            if problem:
                rejects.append((question, problem))
            else:
                asked.append(question)
        prompts = {index: self._model.prompt("base", question) for index, question in enumerate(asked)}
        fitting = {index: prompt for index, prompt in prompts.items() if len(prompt) < self._model.max_length}
        written = self._model.complete(list(fitting.values()), Decoding(self._config.max_new_tokens), seed)
        completions = dict(zip(fitting, written, strict=True))
        rows = [self._row(question, completions.get(index, _NOTHING)) for index, question in enumerate(asked)]
        return WorkResult(
            pa.Table.from_pylist(rows, schema=self.schema),
            rejects,
            tokens=sum(map(len, fitting.values())) + sum(len(completion.ids) for completion in written),
            counts={
                "correct": float(sum(row["correct"] for row in rows)),
                "too_long": float(len(asked) - len(fitting)),
            },
        )

    def _row(self, question: dict[str, Any], completion: Completion) -> dict[str, Any]:
        return {
            "id": question["id"],
            "question": question["question"],
            "completion": completion.text,
            "answer": final_answer(completion.text),
            "correct": self._verify(completion.text, question["standard_answer"]),
        }
