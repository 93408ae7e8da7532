"""Verdicts by comparing final answers: the number after GSM8K's `####`, or the last number."""

import re
from collections.abc import Callable
from decimal import Decimal

Verifier = Callable[[str, str], bool]
"""(response, standard answer) -> whether the response is correct."""

_MARKER = "####"
# thousands separators only in groups of three, so that "3,4" is two numbers
_DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|(?<![\w.])\.[0-9]+"
# a minus after a digit, a word or a bracket subtracts; elsewhere it is a sign, before or after a dollar sign
_SIGNS = r"(?:(?<![\w.)\]])(?P<sign>[-+]))?(?:\$(?P<inner>[-+])?)?"
_NUMBER = re.compile(rf"{_SIGNS}(?P<number>{_DIGITS})(?P<over>/[0-9]+(?:\.[0-9]+)?)?")


def final_answer(text: str) -> str | None:
    """The final answer of a text, as a bare number: no thousands separators, currency or percent signs.

    After the last `####` it is the first number, without that marker the last number of the text. A fraction
    such as 3/4 is kept as it is written, not worked out. None where there is no number.
    """
    _, marker, tail = text.rpartition(_MARKER)
    numbers = list(_NUMBER.finditer(tail.replace("\N{MINUS SIGN}", "-")))
    if not numbers:
        return None
    answer = numbers[0] if marker else numbers[-1]
    sign = "-" if "-" in (answer["sign"], answer["inner"]) else ""
    return sign + answer["number"].replace(",", "") + (answer["over"] or "")


def answers_agree(response: str, standard_answer: str) -> bool:
    """Whether both texts end in the same number: 18 and 18.0 are the same, 3/4 is only itself.

    False where either has no final answer. A standard answer without a number needs a verifier of its own.
    """
    answer, reference = final_answer(response), final_answer(standard_answer)
    if answer is None or reference is None:
        return False
    if "/" in answer or "/" in reference:
        return answer == reference
    return Decimal(answer) == Decimal(reference)
