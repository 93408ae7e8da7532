"""Predictions for a table of test questions, in this process: greedy answers, checked by a verifier."""

from typing import Any

import pyarrow as pa

from nlft_ray.config import EvaluateConfig
from nlft_ray.core.answers import final_answer
from nlft_ray.execution.replica import prompted_model
from nlft_ray.execution.work import WorkResult
from nlft_ray.models.engines.engine import Decoding
from nlft_ray.stages.verifiers import Question, load_verifier, usable_questions
from nlft_ray.tables.schema import PREDICTIONS


class EvaluateWorker:
    """A worker that answers and checks. A question too long for the model is a wrong prediction, no dropped row."""

    schema = PREDICTIONS

    def __init__(self, config: EvaluateConfig):
        self._config = config
        self._verify = load_verifier(config.verifier)
        self._model = prompted_model(config)

    def __call__(self, table: pa.Table, seed: int) -> WorkResult:
        questions, rejects = usable_questions(table, self._config.verifier)
        completions = self._model.answer("base", questions, Decoding(self._config.max_new_tokens), seed)
        rows = []
        for question, answer in zip(questions, completions, strict=True):
            if answer.unanswered:
                rejects.append((question, answer.problem or ""))
            else:
                rows.append(self._row(question, answer.text))
        return WorkResult(
            pa.Table.from_pylist(rows, schema=self.schema),
            rejects,
            tokens=sum(completion.tokens for completion in completions),
            counts={
                "correct": float(sum(row["correct"] for row in rows)),
                "too_long": float(sum(answer.problem is not None and not answer.unanswered for answer in completions)),
            },
        )

    def _row(self, question: Question, completion: str) -> dict[str, Any]:
        return {
            "id": question["id"],
            "question": question["question"],
            "completion": completion,
            "answer": final_answer(completion),
            "correct": self._verify(completion, question["standard_answer"]),
        }
