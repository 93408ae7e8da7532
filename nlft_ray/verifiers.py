"""Find the function that says whether a response is right."""

import importlib

from nlft_ray.core.answers import Verifier, answers_agree
from nlft_ray.errors import UserError


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
