"""The function that says whether a response is right, and the questions on which it can."""

import importlib
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from nlft_ray.core.answers import Verifier, answers_agree, final_answer
from nlft_ray.errors import UserError
from nlft_ray.tables.schema import problem_with_question

Question = dict[str, Any]


def usable_questions(table: pa.Table, verifier: str) -> tuple[list[Question], list[tuple[Mapping[str, Any], str]]]:
    """The questions on whose responses a verdict can be reached, and the others, each with the reason."""
    usable: list[Question] = []
    rejects: list[tuple[Mapping[str, Any], str]] = []
    for question in table.to_pylist():
        problem = problem_with_question(question) or _problem_with_standard_answer(
            verifier, question["standard_answer"]
        )
        if problem:
            rejects.append((question, problem))
        else:
            usable.append(question)
    return usable, rejects


def _problem_with_standard_answer(verifier: str, standard_answer: str | None) -> str | None:
    """Why no verdict can be reached with this standard answer; None where one can."""
    if not standard_answer:
        return "standard_answer is missing or empty, so no verdict can be reached"
    if verifier == "final_answer" and final_answer(standard_answer) is None:
        return "standard_answer holds no number to compare: name a verifier of your own"
    return None


def load_verifier(name: str) -> Verifier:
    """`final_answer`, or the function that `module:function` names.

    Raises:
        UserError: there is no such module or function.
    """
    if name == "final_answer":
        return answers_agree
    module, _, function = name.partition(":")
    try:
        verifier: Verifier = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise UserError(f"verifier: {name} cannot be loaded: {error}") from error
    return verifier
