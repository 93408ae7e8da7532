"""The generator of word problems in the sandbox's closed vocabulary. Needs the standard library alone.

Splits are disjoint by construction: a problem belongs to the split that the hash of its question names, whatever
the seed. So no problem of `test` is ever in `train`, or in `pretrain`, on which the embedded model was trained.
"""

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from nlft_ray.sandbox.arithmetic import MARKER, Mistake, mistakes, results, write_response
from nlft_ray.sandbox.skills import SKILLS, Draft, Skill

SPLITS = ("test", "train", *["pretrain"] * 8)
"""The split of each tenth of the hashes."""
_MOST_REPEATS = 10_000


@dataclass(frozen=True)
class Problem:
    """A word problem, its ideal response, and the mistakes in it."""

    id: str
    skill: str
    question: str
    steps: str
    """The ideal response: a chain of thought that ends in the final-answer marker."""
    standard_answer: str
    """The marker and the number alone."""
    draft: Draft
    habit_strength: float
    """Share of base-context training responses with the habit; 0 where the skill has none."""

    @cached_property
    def mistakes(self) -> tuple[Mistake, ...]:
        """Every mistake of the world in this problem, with its wrong response and its judgment."""
        return tuple(mistakes(self.draft.start, self.draft.moves))

    @cached_property
    def habit(self) -> Mistake | None:
        """The mistake that the embedded model makes by habit in the base context."""
        habit = next(skill.habit for skill in SKILLS if skill.name == self.skill)
        if habit is None:
            return None
        sign = f" {habit.operator} " if habit.operator else ""
        return next(m for m in self.mistakes if m.kind == habit.kind and sign in m.response)

    def judgment_of(self, response: str) -> str | None:
        """The judgment that names what is wrong with a response; None where it has no known mistake."""
        return next((m.judgment for m in self.mistakes if m.response == response), None)


def split_of(question: str) -> str:
    """The one split that a question belongs to."""
    return SPLITS[int.from_bytes(hashlib.sha256(question.encode()).digest()[:8]) % len(SPLITS)]


def problems(split: str, limit: int, seed: int) -> Iterator[Problem]:
    """`limit` different problems of a split (`train`, `test`, `pretrain`), the skills in turn.

    Raises:
        ValueError: no such split, or it has fewer problems.
    """
    if split not in SPLITS:
        raise ValueError(f"the sandbox has no split {split!r}; it has {sorted(set(SPLITS))}")
    rng = random.Random(f"{split} {seed}")
    seen: set[str] = set()
    for number in range(limit):
        yield _new_problem(rng, SKILLS[number % len(SKILLS)], split, seen)


def _new_problem(rng: random.Random, skill: Skill, split: str, seen: set[str]) -> Problem:
    for _ in range(_MOST_REPEATS):
        draft = skill.draw(rng)
        if split_of(draft.question) == split and draft.question not in seen:
            seen.add(draft.question)
            return _problem(skill, draft)
    raise ValueError(f"the sandbox's split {split!r} has no more problems of skill {skill.name!r}")


def _problem(skill: Skill, draft: Draft) -> Problem:
    right = results(draft.start, draft.moves)
    assert right is not None, f"{draft.question} leaves the world's numbers"
    return Problem(
        id=f"{skill.name}-{hashlib.sha256(draft.question.encode()).hexdigest()[:12]}",
        skill=skill.name,
        question=draft.question,
        steps=write_response(draft.start, draft.moves, right),
        standard_answer=f"{MARKER} {right[-1]}",
        draft=draft,
        habit_strength=skill.habit.strength if skill.habit else 0.0,
    )
