"""What a model can do in the sandbox, measured on unseen problems: the figures of the embedded model's log.

The base context by skill, greedy and sampled; the standard context; the judge context; and the model's judgments
of its own responses. All prompts are rendered as in use.
"""

import random
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from omegaconf import OmegaConf
from transformers import AutoModelForCausalLM, AutoTokenizer

from nlft_ray.config import PromptConfig, RunConfig
from nlft_ray.models.prompts import PromptKind, prompt_ids
from nlft_ray.sandbox import QUICKSTART
from nlft_ray.sandbox.arithmetic import Mistake
from nlft_ray.sandbox.world import Problem, problems

MAX_NEW_TOKENS, BATCH_SIZE = 64, 128
RIGHT_JUDGMENT = "Correct."
"""The model's judgment of a response that is right."""


def quickstart_prompts() -> PromptConfig:
    """The prompts that the embedded model was trained on."""
    settings = OmegaConf.to_container(OmegaConf.load(QUICKSTART))
    return RunConfig.model_validate(settings).prompts


class Speaker:
    """The model, answering prompts of the four kinds."""

    def __init__(self, folder: Path, prompts: PromptConfig) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.prompts = prompts

    @torch.inference_mode()
    def answer(self, kind: PromptKind, rows: Sequence[Mapping[str, str]], temperature: float = 0.0) -> list[str]:
        """A response to each row's prompt; greedy where the temperature is 0."""
        answers: list[str] = []
        drawing: dict[str, bool | float] = {"do_sample": False}
        if temperature:
            drawing = {"do_sample": True, "temperature": temperature, "top_k": 0}
        for first in range(0, len(rows), BATCH_SIZE):
            asked = rows[first : first + BATCH_SIZE]
            prompts = [prompt_ids(self.tokenizer, self.prompts, kind, row) for row in asked]
            batch = self.tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt")
            output = self.model.generate(**batch, max_new_tokens=MAX_NEW_TOKENS, **drawing)
            answers += self.tokenizer.batch_decode(output[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
        return answers


@dataclass(frozen=True)
class Trial:
    """One thing asked of the model: what of, in which group it counts, and whether it did it."""

    ability: str
    group: str
    done: bool


def is_right(problem: Problem, response: str) -> bool:
    """Whether the response reaches the problem's answer."""
    return response.endswith(f" {problem.standard_answer}")


def fields(problem: Problem, **more: str) -> dict[str, str]:
    """The columns that a prompt of this problem may name."""
    return {"question": problem.question, "standard_answer": problem.standard_answer, **more}


def base_trials(speaker: Speaker, asked: Sequence[Problem]) -> list[Trial]:
    """Accuracy in the base context, greedy and sampled, and in the standard context."""
    rows = [fields(problem) for problem in asked]
    answered = {
        "base, greedy": speaker.answer("base", rows),
        "base, sampled": speaker.answer("base", rows, temperature=1.0),
        "standard": speaker.answer("standard", rows),
    }
    return [
        Trial(ability, problem.skill, is_right(problem, response))
        for ability, responses in answered.items()
        for problem, response in zip(asked, responses, strict=True)
    ]


def own_judgment_trials(speaker: Speaker, asked: Sequence[Problem]) -> list[Trial]:
    """The model's judgments of its own sampled responses: whether they name the mistake, or say 'correct'."""
    responses = speaker.answer("base", [fields(problem) for problem in asked], temperature=1.0)
    judgments = speaker.answer(
        "ask_judgment", [fields(p, response=response) for p, response in zip(asked, responses, strict=True)]
    )
    trials = []
    for problem, response, judgment in zip(asked, responses, judgments, strict=True):
        if is_right(problem, response):
            trials.append(Trial("own right, called correct", problem.skill, judgment == RIGHT_JUDGMENT))
        elif (expected := problem.judgment_of(response)) is not None:
            trials.append(Trial("own wrong, mistake named", problem.skill, judgment == expected))
    return trials


def mistake_trials(speaker: Speaker, asked: Sequence[Problem], rng: random.Random) -> list[Trial]:
    """Mistakes of every kind: made in the judge context when named there, and named when a response has them."""
    pairs = [(problem, mistake) for problem in asked for mistake in _one_of_each_kind(problem, rng)]
    made = speaker.answer("judge", [fields(p, judgment=mistake.judgment) for p, mistake in pairs])
    named = speaker.answer("ask_judgment", [fields(p, response=mistake.response) for p, mistake in pairs])
    trials = []
    for (_, mistake), response, judgment in zip(pairs, made, named, strict=True):
        trials.append(Trial("judge: makes it", mistake.kind, response == mistake.response))
        trials.append(Trial("judging: names it", mistake.kind, judgment == mistake.judgment))
    return trials


def habit_trials(speaker: Speaker, asked: Sequence[Problem]) -> list[Trial]:
    """The judge context with a judgment that names the habit."""
    pairs = [(problem, problem.habit) for problem in asked if problem.habit is not None]
    made = speaker.answer("judge", [fields(p, judgment=habit.judgment) for p, habit in pairs])
    return [
        Trial("judge, habit named", problem.skill, response == habit.response)
        for (problem, habit), response in zip(pairs, made, strict=True)
    ]


def _one_of_each_kind(problem: Problem, rng: random.Random) -> list[Mistake]:
    by_kind: dict[str, list[Mistake]] = defaultdict(list)
    for mistake in problem.mistakes:
        by_kind[mistake.kind].append(mistake)
    return [rng.choice(by_kind[kind]) for kind in sorted(by_kind)]


def measure(folder: Path, prompts: PromptConfig, problems_per_skill: int = 100, seed: int = 2) -> str:
    """All figures as Markdown. The seed fixes the problems and the draws."""
    torch.manual_seed(seed)
    speaker = Speaker(folder, prompts)
    skills = {problem.skill: problem.habit_strength for problem in problems("test", 100, seed)}
    asked = list(problems("test", problems_per_skill * len(skills), seed))
    by_skill = [*base_trials(speaker, asked), *habit_trials(speaker, asked), *own_judgment_trials(speaker, asked)]
    by_kind = mistake_trials(speaker, asked, random.Random(seed))
    habits = {skill: f"{strength:.0%}" if strength else "none" for skill, strength in skills.items()}
    return (
        f"Measured with the stored weights on {len(asked)} problems of the test split; per cent of n.\n\n"
        f"{_table(by_skill, 'skill', 'habit', habits)}\n"
        f"Mistakes of every kind that the world knows:\n\n{_table(by_kind, 'kind of mistake')}"
    )


def _table(
    trials: Iterable[Trial], groups_are: str, notes_are: str = "", notes: Mapping[str, str] | None = None
) -> str:
    """A Markdown table: a row for each group, a column for each ability, per cent and n in the cells."""
    cells: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for trial in trials:
        for group in (trial.group, "all"):
            cells[group][trial.ability].append(trial.done)
    cells["all"] = cells.pop("all")  # last
    abilities = list(cells["all"])
    head = [groups_are, *([notes_are] if notes else []), *abilities]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for group, done in cells.items():
        note = [notes.get(group, "")] if notes else []
        lines.append(f"| {' | '.join([group, *note, *(_per_cent(done[ability]) for ability in abilities)])} |")
    return "\n".join(lines) + "\n"


def _per_cent(done: Sequence[bool]) -> str:
    return f"{100 * sum(done) / len(done):.0f} ({len(done)})" if done else "–"
