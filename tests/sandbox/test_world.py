"""The generator: splits, determinism, and the agreement of everything that is known about a problem."""

import itertools

import pytest

from nlft_ray.sandbox import world
from nlft_ray.sandbox.arithmetic import MARKER
from nlft_ray.sandbox.skills import SKILLS
from nlft_ray.sandbox.world import SPLITS, Problem, problems, split_of


@pytest.fixture(scope="module")
def drawn() -> dict[str, list[Problem]]:
    return {split: list(problems(split, 10_000, seed=0)) for split in sorted(set(SPLITS))}


def answer(response: str) -> str:
    return response.rpartition(f"{MARKER} ")[2]


def test_no_problem_is_in_two_splits(drawn: dict[str, list[Problem]]) -> None:
    questions = {split: {problem.question for problem in found} for split, found in drawn.items()}
    for one, other in itertools.combinations(questions, 2):
        assert questions[one].isdisjoint(questions[other])


def test_a_question_belongs_to_one_split_whatever_the_seed() -> None:
    for split, seed in itertools.product(set(SPLITS), (1, 2, 3)):
        assert all(split_of(problem.question) == split for problem in problems(split, 1_000, seed))


def test_the_problems_of_a_draw_are_different(drawn: dict[str, list[Problem]]) -> None:
    for found in drawn.values():
        assert len({problem.question for problem in found}) == len(found)
        assert len({problem.id for problem in found}) == len(found)


def test_a_seed_gives_the_same_problems_and_a_longer_draw_begins_with_them() -> None:
    short, long = list(problems("train", 100, seed=5)), list(problems("train", 200, seed=5))
    assert short == long[:100]
    assert short != list(problems("train", 100, seed=6))


def test_every_skill_comes_equally_often() -> None:
    found = [problem.skill for problem in problems("test", 50, seed=0)]
    assert {skill.name: found.count(skill.name) for skill in SKILLS} == {skill.name: 5 for skill in SKILLS}


def test_the_standard_answer_is_what_the_steps_reach(drawn: dict[str, list[Problem]]) -> None:
    for problem in drawn["train"]:
        assert problem.steps.endswith(f" {problem.standard_answer}")
        assert 1 <= int(answer(problem.standard_answer)) <= 99


def test_the_steps_calculate_correctly(drawn: dict[str, list[Problem]]) -> None:
    for problem in drawn["train"]:
        for sentence in problem.steps.split(". "):
            if "=" in sentence:
                words = sentence.split()
                at = words.index("=")
                left, operator, right, result = *words[at - 3 : at], words[at + 1]
                assert eval(f"{left} {operator} {right} == {result}"), problem.steps


def test_a_mistake_reaches_another_answer_and_has_its_own_judgment(drawn: dict[str, list[Problem]]) -> None:
    for problem in drawn["train"][:2_000]:
        assert problem.mistakes
        for mistake in problem.mistakes:
            assert answer(mistake.response) != answer(problem.steps)
            assert problem.judgment_of(mistake.response) == mistake.judgment
        assert len({mistake.response for mistake in problem.mistakes}) == len(problem.mistakes)


def test_right_and_unheard_of_responses_have_no_judgment() -> None:
    problem = next(problems("train", 1, seed=0))
    assert problem.judgment_of(problem.steps) is None
    assert problem.judgment_of("I do not know.") is None


def test_a_habit_is_the_mistake_that_the_skill_names(drawn: dict[str, list[Problem]]) -> None:
    habits = {problem.skill: problem.habit for problem in drawn["train"]}
    assert {skill.name for skill in SKILLS if skill.habit} == {name for name, habit in habits.items() if habit}
    for skill in SKILLS:
        habit = habits[skill.name]
        if skill.habit and habit:
            assert habit.kind == skill.habit.kind
            assert skill.habit.operator is None or f" {skill.habit.operator} " in habit.response


def test_strengths_differ() -> None:
    strengths = [skill.habit.strength for skill in SKILLS if skill.habit]
    assert len(set(strengths)) == len(strengths)
    assert all(0.65 <= strength <= 0.95 for strength in strengths)


def test_an_unknown_split_and_an_exhausted_one_are_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="no split 'validation'"):
        next(problems("validation", 1, seed=0))
    monkeypatch.setattr(world, "_MOST_REPEATS", 20)
    with pytest.raises(ValueError, match="has no more problems of skill"):
        list(problems("test", 10_000_000, seed=0))
