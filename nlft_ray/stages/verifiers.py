"""Find the function that says whether a response is right."""

import importlib

from nlft_ray.core.answers import Verifier, answers_agree, final_answer
from nlft_ray.errors import UserError


def problem_with_standard_answer(verifier: str, standard_answer: str | None) -> str | None:
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
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise UserError(f"verifier: {name} cannot be loaded: {error}") from error
    return found
