"""The texts that run through the model for a row: its response behind the prompt of each context it needs.

A correct response needs two contexts (base, standard), an incorrect one three; without a standard answer one fewer.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from nlft_ray.config import PromptConfig
from nlft_ray.models.prompts import prompt_ids
from nlft_ray.tables.schema import INCORRECT

Context = Literal["base", "judge", "standard"]


@dataclass(frozen=True)
class ScoringRow:
    """One response, and the prompt ids of each context it is scored under."""

    id: str
    verdict: str
    prompts: dict[Context, list[int]]
    response_ids: list[int]  # n tokens, the end-of-turn token included where the model wrote one
    standard_ids: list[int] | None

    def lengths(self) -> dict[Context, int]:
        """Tokens of prompt and response under each context."""
        return {context: len(prompt) + len(self.response_ids) for context, prompt in self.prompts.items()}


class RowBuilder:
    """Turns a row of the examples table into ids."""

    def __init__(self, tokenizer: Any, prompts: PromptConfig, end_of_turn: int):
        self._tokenizer = tokenizer
        self._prompts = prompts
        self._end_of_turn = end_of_turn

    def __call__(self, row: Mapping[str, Any]) -> ScoringRow:
        """Prompt and response are tokenised apart, so that the response is the same ids under every context."""
        contexts: list[Context] = ["base"]
        if row["verdict"] == INCORRECT:
            contexts.append("judge")
        if row["standard_answer"]:
            contexts.append("standard")
        return ScoringRow(
            id=row["id"],
            verdict=row["verdict"],
            prompts={context: prompt_ids(self._tokenizer, self._prompts, context, row) for context in contexts},
            response_ids=row["response_ids"] or self._text_ids(row["response"]),
            standard_ids=self._text_ids(row["standard_answer"]) if row["standard_answer"] else None,
        )

    def _text_ids(self, text: str) -> list[int]:
        return [*self._tokenizer(text, add_special_tokens=False)["input_ids"], self._end_of_turn]
