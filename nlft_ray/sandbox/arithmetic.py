"""Responses of the sandbox: chains of operations written out in words, and what can go wrong in them.

A response starts from a number and applies moves, each to the result before it:
`First Anna has 43 + 8 = 51 apples. Then she has 51 - 5 = 46 apples. #### 46`. A mistake is one change to this
chain (another operator, a forgotten move, a wrong result); what follows it is right given the
mistake.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

LARGEST = 99
"""The largest number of the world."""
MARKER = "####"
"""Sign before the final answer, as in GSM8K."""

Operator = Literal["+", "-", "*", "/"]
OPERATORS: tuple[Operator, ...] = ("+", "-", "*", "/")
MistakeKind = Literal["operator", "forgotten", "result"]

_DO = {"+": "add", "-": "subtract", "*": "multiply by", "/": "divide by"}
_DOES = {"+": "adds", "-": "subtracts", "*": "multiplies by", "/": "divides by"}
_OFF_BY = (-10, -2, -1, 1, 2, 10)


@dataclass(frozen=True)
class Move:
    """One sentence of a response: `before` left `operator` number = result `after`."""

    before: str
    operator: Operator
    number: int
    after: str


@dataclass(frozen=True)
class Mistake:
    """A wrong response to a problem, and the judgment that names what is wrong with it."""

    kind: MistakeKind
    response: str
    judgment: str


def apply(left: int, operator: Operator, number: int) -> int | None:
    """Result of one operation; None where it is none of the world's numbers (1 to LARGEST)."""
    if operator == "/":
        result, remainder = divmod(left, number)
        return result if remainder == 0 and result > 0 else None
    result = {"+": left + number, "-": left - number, "*": left * number}[operator]
    return result if 1 <= result <= LARGEST else None


def results(start: int, moves: Sequence[Move]) -> list[int] | None:
    """Result of each move; None where one leaves the world's numbers."""
    values: list[int] = []
    for move in moves:
        result = apply(values[-1] if values else start, move.operator, move.number)
        if result is None:
            return None
        values.append(result)
    return values


def write_response(start: int, moves: Sequence[Move], move_results: Sequence[int]) -> str:
    """The response in words. It takes the results, so that a wrong one can be written too."""
    sentences, left = [], start
    for move, result in zip(moves, move_results, strict=True):
        sentences.append(f"{move.before} {left} {move.operator} {move.number} = {result} {move.after}")
        left = result
    return " ".join([*sentences, f"{MARKER} {left}"])


def mistakes(start: int, moves: Sequence[Move]) -> Iterator[Mistake]:
    """Every mistake of the world in a chain of moves that leads to a wrong answer."""
    right = results(start, moves)
    assert right is not None, "a problem's own moves stay within the world's numbers"
    for mistake, answer in (
        *_wrong_operators(start, moves),
        *_forgotten_moves(start, moves),
        *_wrong_results(start, moves, right),
    ):
        if answer != right[-1]:
            yield mistake


_MistakesAndAnswers = Iterator[tuple[Mistake, int]]  # a mistake and the answer it leads to


def _mistake(start: int, moves: Sequence[Move], kind: MistakeKind, judgment: str) -> _MistakesAndAnswers:
    move_results = results(start, moves)
    if move_results is not None:
        yield Mistake(kind, write_response(start, moves, move_results), judgment), move_results[-1]


def _with_move(moves: Sequence[Move], at: int, move: Move) -> list[Move]:
    return [*moves[:at], move, *moves[at + 1 :]]


def _wrong_operators(start: int, moves: Sequence[Move]) -> _MistakesAndAnswers:
    for at, move in enumerate(moves):
        for operator in OPERATORS:
            if operator != move.operator:
                judgment = f"It {_DOES[operator]} {move.number} where it should {_DO[move.operator]} {move.number}."
                yield from _mistake(
                    start, _with_move(moves, at, replace(move, operator=operator)), "operator", judgment
                )


def _forgotten_moves(start: int, moves: Sequence[Move]) -> _MistakesAndAnswers:
    if len(moves) > 1:
        judgment = f"It forgets to {_DO[moves[-1].operator]} {moves[-1].number}."
        yield from _mistake(start, moves[:-1], "forgotten", judgment)


def _wrong_results(start: int, moves: Sequence[Move], right: Sequence[int]) -> _MistakesAndAnswers:
    for at, move in enumerate(moves):
        left = right[at - 1] if at else start
        for off_by in _OFF_BY:
            wrong = right[at] + off_by
            rest = results(wrong, moves[at + 1 :])
            if rest is not None and 1 <= wrong <= LARGEST:
                wrong_results = [*right[:at], wrong, *rest]
                judgment = f"It says that {left} {move.operator} {move.number} is {wrong}."
                yield Mistake("result", write_response(start, moves, wrong_results), judgment), wrong_results[-1]
