"""Responses to a table of questions, in this process."""

from collections import Counter
from typing import Any

import pyarrow as pa

from nlft_ray.config import SampleConfig
from nlft_ray.execution.replica import prompted_model
from nlft_ray.execution.work import WorkResult
from nlft_ray.models.engines.engine import Decoding
from nlft_ray.models.generation import Completion
from nlft_ray.stages.verifiers import Question, load_verifier, usable_questions
from nlft_ray.tables.schema import CORRECT, INCORRECT, RESPONSES


class SampleWorker:
    """A worker that prompts the model in the base context and compares what it says with the standard answer."""

    schema = RESPONSES

    def __init__(self, config: SampleConfig):
        self._config = config
        self._verify = load_verifier(config.verifier)
        self._model = prompted_model(config)

    def __call__(self, table: pa.Table, seed: int) -> WorkResult:
        config, draws = self._config, self._config.responses_per_question
        questions, rejects = usable_questions(table, config.verifier)
        repeated = [question for question in questions for _ in range(draws)]
        decoding = Decoding(config.max_new_tokens, config.temperature, config.top_p)
        responses = self._model.answer("base", repeated, decoding, seed)
        rows, counts = [], Counter[str]()
        for number, (question, response) in enumerate(zip(repeated, responses, strict=True)):
            draw = number % draws
            if response.unanswered:
                rejects.append((question | {"id": self._id(question, draw)}, response.problem or ""))
                continue
            if response.problem:
                if draw == 0:  # of the question, whatever would be drawn
                    rejects.append((question, response.problem))
                continue
            row = self._row(question, draw, response)
            if not response.text:
                rejects.append((row, "the model's response is empty"))
                continue
            rows.append(row)
            counts.update({row["verdict"]: 1, "cut_at_max_new_tokens": not response.ended})
        tokens = sum(response.tokens for response in responses)
        return WorkResult(pa.Table.from_pylist(rows, schema=self.schema), rejects, tokens, dict(counts))

    def _id(self, question: Question, draw: int) -> str:
        return f"{question['id']}/{draw}" if self._config.responses_per_question > 1 else question["id"]

    def _row(self, question: Question, draw: int, response: Completion) -> dict[str, Any]:
        return {
            **question,
            "id": self._id(question, draw),
            "response": response.text,
            "response_ids": response.ids,
            "verdict": CORRECT if self._verify(response.text, question["standard_answer"]) else INCORRECT,
            "judgment": None,
            "source": self._config.model.path,
        }
