"""The skills of the sandbox: what its word problems are about, and the model's bad habit in each.

A skill draws a question and the moves that solve it. A habit is the mistake that the embedded model makes in the
base context, in the given share of the responses that it was trained on.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

from nlft_ray.sandbox.arithmetic import LARGEST, MistakeKind, Move, Operator

NAMES = {
    "Anna": "she", "Ben": "he", "Carl": "he", "Dora": "she", "Emma": "she", "Finn": "he",
    "Gina": "she", "Hugo": "he", "Iris": "she", "Jon": "he", "Kate": "she", "Liam": "he",
}  # fmt: skip
THINGS = (
    "apples", "balls", "beads", "books", "cards", "coins", "dolls", "eggs",
    "kites", "lemons", "nuts", "pears", "pens", "shells", "stamps", "stones",
)  # fmt: skip
CONTAINERS = ("bags", "baskets", "boxes")
GAINS = ("buys", "finds", "gets")
LOSSES = ("loses", "sells", "gives away")


@dataclass(frozen=True)
class Draft:
    """A question and the chain of moves that solves it."""

    question: str
    start: int
    moves: tuple[Move, ...]


@dataclass(frozen=True)
class Habit:
    """The mistake that the model makes by habit: a wrong operator, or the last move forgotten."""

    kind: MistakeKind
    strength: float
    """Share of the base-context training responses that have it."""
    operator: Operator | None = None
    """The operator it writes instead of the right one."""


@dataclass(frozen=True)
class Skill:
    """A kind of problem."""

    name: str
    draw: Callable[[random.Random], Draft]
    habit: Habit | None = None


def _two_names(rng: random.Random) -> tuple[str, str]:
    first, second = rng.sample(list(NAMES), 2)
    return first, second


def _change(rng: random.Random, operator: Operator, verbs: tuple[str, ...]) -> Draft:
    name, thing, verb = rng.choice(list(NAMES)), rng.choice(THINGS), rng.choice(verbs)
    start = rng.randint(11, 79)
    number = rng.randint(2, min(start - 1, LARGEST - start, 29))
    question = (
        f"{name} has {start} {thing}. {NAMES[name].capitalize()} {verb} {number} {thing}. "
        f"How many {thing} does {name} have now?"
    )
    return Draft(question, start, (Move(f"{name} has", operator, number, f"{thing} now."),))


def _gain(rng: random.Random) -> Draft:
    return _change(rng, "+", GAINS)


def _lose(rng: random.Random) -> Draft:
    return _change(rng, "-", LOSSES)


def _gain_and_lose(rng: random.Random) -> Draft:
    name, thing = rng.choice(list(NAMES)), rng.choice(THINGS)
    start, gained, lost = rng.randint(11, 69), rng.randint(2, 29), rng.randint(2, 9)
    pronoun = NAMES[name]
    question = (
        f"{name} has {start} {thing}. First {pronoun} {rng.choice(GAINS)} {gained} {thing}. "
        f"Then {pronoun} {rng.choice(LOSSES)} {lost} {thing}. How many {thing} does {name} have now?"
    )
    moves = (
        Move(f"First {name} has", "+", gained, f"{thing}."),
        Move(f"Then {pronoun} has", "-", lost, f"{thing}."),
    )
    return Draft(question, start, moves)


def _comparison(rng: random.Random, start: int, than: str, operator: Operator, number: int) -> Draft:
    """A question about two persons; `than` says what the second has, as a template of `thing` and `name`."""
    (first, second), thing = _two_names(rng), rng.choice(THINGS)
    question = (
        f"{first} has {start} {thing}. {second} has {than.format(thing=thing, name=first)}. "
        f"How many {thing} does {second} have?"
    )
    return Draft(question, start, (Move(f"{second} has", operator, number, f"{thing}."),))


def _more(rng: random.Random) -> Draft:
    start = rng.randint(11, 79)
    number = rng.randint(2, min(start - 1, LARGEST - start, 29))
    return _comparison(rng, start, f"{number} more {{thing}} than {{name}}", "+", number)


def _fewer(rng: random.Random) -> Draft:
    start = rng.randint(11, 79)
    number = rng.randint(2, min(start - 1, LARGEST - start, 29))
    return _comparison(rng, start, f"{number} fewer {{thing}} than {{name}}", "-", number)


def _twice(rng: random.Random) -> Draft:
    return _comparison(rng, rng.randint(3, LARGEST // 2), "twice as many {thing} as {name}", "*", 2)


def _half(rng: random.Random) -> Draft:
    return _comparison(rng, 2 * rng.randint(3, LARGEST // 2), "half as many {thing} as {name}", "/", 2)


def _containers(rng: random.Random) -> Draft:
    name, thing, container = rng.choice(list(NAMES)), rng.choice(THINGS), rng.choice(CONTAINERS)
    count, content = rng.randint(3, 9), rng.randint(3, 9)
    question = (
        f"{name} has {count} {container}. There are {content} {thing} in each. How many {thing} does {name} have?"
    )
    return Draft(question, count, (Move(f"{name} has", "*", content, f"{thing}."),))


def _difference(rng: random.Random) -> Draft:
    (first, second), thing = _two_names(rng), rng.choice(THINGS)
    start = rng.randint(11, 79)
    number = rng.randint(2, min(start - 1, LARGEST - start))
    question = (
        f"{first} has {start} {thing}. {second} has {number} {thing}. "
        f"How many more {thing} does {first} have than {second}?"
    )
    return Draft(question, start, (Move(f"{first} has", "-", number, f"more {thing}."),))


def _three(rng: random.Random) -> Draft:
    first, second, third = rng.sample(list(NAMES), 3)
    thing = rng.choice(THINGS)
    counts = rng.randint(11, 49), rng.randint(2, 29), rng.randint(2, 19)
    question = (
        f"{first} has {counts[0]} {thing}. {second} has {counts[1]} {thing}. {third} has {counts[2]} {thing}. "
        f"How many {thing} do they have together?"
    )
    moves = (
        Move(f"{first} and {second} have", "+", counts[1], f"{thing}."),
        Move("Together they have", "+", counts[2], f"{thing}."),
    )
    return Draft(question, counts[0], moves)


SKILLS = (
    Skill("gain", _gain),
    Skill("lose", _lose),
    Skill("gain_and_lose", _gain_and_lose),
    Skill("fewer", _fewer),
    Skill("more", _more, Habit("operator", 0.65, "-")),
    Skill("half", _half, Habit("operator", 0.66, "-")),
    Skill("twice", _twice, Habit("operator", 0.68, "+")),
    Skill("containers", _containers, Habit("operator", 0.72, "+")),
    Skill("difference", _difference, Habit("operator", 0.80, "+")),
    Skill("three", _three, Habit("forgotten", 0.92)),
)
