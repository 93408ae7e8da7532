"""Answers a table of test questions greedily and checks the answers, in this process."""

from typing import Any

import pyarrow as pa

from nlft_ray.config import EvaluateConfig
from nlft_ray.core.answers import final_answer
from nlft_ray.generation import Decoding, Generator
from nlft_ray.models import end_of_turn_id, load_model, load_tokenizer, max_length
from nlft_ray.prompts import prompt_ids
from nlft_ray.schema import PREDICTIONS, problem_with_question
from nlft_ray.shards import Worked
from nlft_ray.verifiers import load_verifier, problem_with_standard_answer


class EvaluateWorker:
    """Every question counts: one that the model cannot be asked is a wrong prediction, never a dropped row."""

    schema = PREDICTIONS

    def __init__(self, config: EvaluateConfig):
        self._config = config
        self._verify = load_verifier(config.verifier)
        self._tokenizer = load_tokenizer(config.model)
        self._max_length = max_length(config.model)
        self._generate = Generator(
            load_model(config.model),
            end_of_turn=end_of_turn_id(self._tokenizer, config.model),
            max_length=self._max_length,
            batch_size=config.batch_size,
        )

    def __call__(self, table: pa.Table, seed: int) -> Worked:
        rejects: list[tuple[Any, str]] = []
        asked: list[tuple[dict[str, Any], list[int]]] = []
        for question in table.to_pylist():
            problem = problem_with_question(question) or problem_with_standard_answer(
                self._config.verifier, question["standard_answer"]
            )
            if problem:
                rejects.append((question, problem))
            else:
                asked.append((question, prompt_ids(self._tokenizer, self._config.prompts, "base", question)))
        fitting = [prompt for _, prompt in asked if len(prompt) < self._max_length]
        completions = iter(self._generate(fitting, Decoding(self._config.max_new_tokens), seed) if fitting else [])
        answered = [
            (question, next(completions) if len(prompt) < self._max_length else []) for question, prompt in asked
        ]
        rows = [self._row(question, ids) for question, ids in answered]
        counts = {
            "correct": float(sum(row["correct"] for row in rows)),
            "too_long": float(len(asked) - len(fitting)),
        }
        tokens = sum(map(len, fitting)) + sum(len(ids) for _, ids in answered)
        return Worked(pa.Table.from_pylist(rows, schema=self.schema), rejects, tokens, counts)

    def _row(self, question: dict[str, Any], ids: list[int]) -> dict[str, Any]:
        completion = self._tokenizer.decode(ids, skip_special_tokens=True).strip()
        return {
            "id": question["id"],
            "question": question["question"],
            "completion": completion,
            "answer": final_answer(completion),
            "correct": self._verify(completion, question["standard_answer"]),
        }
