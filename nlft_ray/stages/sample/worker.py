"""Draws responses for a table of questions, in this process."""

from collections import Counter
from typing import Any

import pyarrow as pa

from nlft_ray.config import SampleConfig
from nlft_ray.execution.work import WorkResult
from nlft_ray.models.generation import Completion, Decoding, PromptedModel
from nlft_ray.stages.verifiers import load_verifier, problem_with_standard_answer
from nlft_ray.tables.schema import CORRECT, INCORRECT, RESPONSES, problem_with_question

Question = dict[str, Any]


class SampleWorker:
    """Prompts the model in the base context and compares what it says with the standard answer."""

    schema = RESPONSES

    def __init__(self, config: SampleConfig):
        self._config = config
        self._verify = load_verifier(config.verifier)
        self._model = PromptedModel(config.model, config.prompts, config.batch_size)

    def __call__(self, table: pa.Table, seed: int) -> WorkResult:
        config = self._config
        usable, rejects = self._prompts(table)
        asked = [pair for pair in usable for _ in range(config.responses_per_question)]
        decoding = Decoding(config.max_new_tokens, config.temperature, config.top_p)
        responses = self._model.complete([prompt for _, prompt in asked], decoding, seed)
        rows, counts = [], Counter[str]()
        for number, ((question, _), response) in enumerate(zip(asked, responses, strict=True)):
            row = self._row(question, number % config.responses_per_question, response)
            if not response.text:
                rejects.append((row, "the model's response is empty"))
                continue
            rows.append(row)
            counts.update({row["verdict"]: 1, "cut_at_max_new_tokens": not response.ended})
        tokens = sum(len(prompt) + len(response.ids) for (_, prompt), response in zip(asked, responses, strict=True))
        return WorkResult(pa.Table.from_pylist(rows, schema=self.schema), rejects, tokens, dict(counts))

    def _prompts(self, table: pa.Table) -> tuple[list[tuple[Question, list[int]]], list[tuple[Any, str]]]:
        """Questions with their prompts, and the questions that cannot be asked."""
        usable: list[tuple[Question, list[int]]] = []
        rejects: list[tuple[Any, str]] = []
        for question in table.to_pylist():
            problem = problem_with_question(question) or problem_with_standard_answer(
                self._config.verifier, question["standard_answer"]
            )
            prompt = [] if problem else self._model.prompt("base", question)
            if len(prompt) >= self._model.max_length:
                problem = f"too long: a prompt of {len(prompt)} tokens leaves no room in {self._model.max_length}"
            if problem:
                rejects.append((question, problem))
            else:
                usable.append((question, prompt))
        return usable, rejects

    def _row(self, question: Question, draw: int, response: Completion) -> dict[str, Any]:
        several = self._config.responses_per_question > 1
        return {
            **question,
            "id": f"{question['id']}/{draw}" if several else question["id"],
            "response": response.text,
            "response_ids": response.ids,
            "verdict": CORRECT if self._verify(response.text, question["standard_answer"]) else INCORRECT,
            "judgment": None,
            "source": self._config.model.path,
        }
