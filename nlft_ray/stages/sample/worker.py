"""Draws responses for a table of questions, in this process."""

from collections import Counter
from typing import Any

import pyarrow as pa

from nlft_ray.config import SampleConfig
from nlft_ray.generation import Decoding, Generator
from nlft_ray.models import end_of_turn_id, load_model, load_tokenizer, max_length
from nlft_ray.prompts import prompt_ids
from nlft_ray.schema import CORRECT, INCORRECT, RESPONSES, problem_with_question
from nlft_ray.shards import Worked
from nlft_ray.verifiers import load_verifier, problem_with_standard_answer


class SampleWorker:
    """Prompts the model in the base context and compares what it says with the standard answer."""

    schema = RESPONSES

    def __init__(self, config: SampleConfig):
        self._config = config
        self._verify = load_verifier(config.verifier)
        self._tokenizer = load_tokenizer(config.model)
        self._max_length = max_length(config.model)
        self._end_of_turn = end_of_turn_id(self._tokenizer, config.model)
        self._generate = Generator(
            load_model(config.model),
            end_of_turn=self._end_of_turn,
            max_length=self._max_length,
            batch_size=config.batch_size,
        )

    def __call__(self, table: pa.Table, seed: int) -> Worked:
        usable, rejects = self._prompts(table)
        asked = [pair for pair in usable for _ in range(self._config.responses_per_question)]
        config = self._config
        decoding = Decoding(config.max_new_tokens, config.temperature, config.top_p)
        responses = self._generate([prompt for _, prompt in asked], decoding, seed) if asked else []
        rows, counts = [], Counter[str]()
        for number, ((question, _), ids) in enumerate(zip(asked, responses, strict=True)):
            row = self._row(question, number % config.responses_per_question, ids)
            if not row["response"]:
                rejects.append((row, "the model's response is empty"))
                continue
            rows.append(row)
            counts[row["verdict"]] += 1
            counts["cut_at_max_new_tokens"] += ids[-1] != self._end_of_turn
        tokens = sum(len(prompt) + len(ids) for (_, prompt), ids in zip(asked, responses, strict=True))
        return Worked(pa.Table.from_pylist(rows, schema=self.schema), rejects, tokens, dict(counts))

    def _prompts(self, table: pa.Table) -> tuple[list[tuple[dict[str, Any], list[int]]], list[tuple[Any, str]]]:
        """Questions with their prompts, and the questions that cannot be asked."""
        usable: list[tuple[dict[str, Any], list[int]]] = []
        rejects: list[tuple[Any, str]] = []
        for question in table.to_pylist():
            problem = problem_with_question(question) or problem_with_standard_answer(
                self._config.verifier, question["standard_answer"]
            )
            prompt = [] if problem else prompt_ids(self._tokenizer, self._config.prompts, "base", question)
            if len(prompt) >= self._max_length:
                problem = f"too long: a prompt of {len(prompt)} tokens leaves no room in {self._max_length}"
            if problem:
                rejects.append((question, problem))
            else:
                usable.append((question, prompt))
        return usable, rejects

    def _row(self, question: dict[str, Any], draw: int, ids: list[int]) -> dict[str, Any]:
        response = self._tokenizer.decode(ids, skip_special_tokens=True).strip()
        several = self._config.responses_per_question > 1
        return {
            **question,
            "id": f"{question['id']}/{draw}" if several else question["id"],
            "response": response,
            "response_ids": ids,
            "verdict": CORRECT if self._verify(response, question["standard_answer"]) else INCORRECT,
            "judgment": None,
            "source": self._config.model.path,
        }
