"""The embedded checkpoint: its folder, its tokenizer, and the claims that the documentation makes for it."""

import random

import pytest
import torch
from omegaconf import OmegaConf

from nlft_ray.config import RunConfig
from nlft_ray.models.prompts import PromptKind, prompt_ids, user_message
from nlft_ray.sandbox import MODEL_FOLDER, QUICKSTART
from nlft_ray.sandbox.skills import SKILLS
from nlft_ray.sandbox.world import Problem, problems
from pipelines.sandbox.abilities import (
    Speaker,
    Trial,
    base_trials,
    fields,
    habit_trials,
    mistake_trials,
    own_judgment_trials,
    quickstart_prompts,
)

KINDS: tuple[PromptKind, ...] = ("base", "judge", "standard", "ask_judgment")
WITH_HABIT = {skill.name for skill in SKILLS if skill.habit}


@pytest.fixture(scope="module")
def speaker() -> Speaker:
    return Speaker(MODEL_FOLDER, quickstart_prompts())


@pytest.fixture(scope="module")
def asked() -> list[Problem]:
    return list(problems("test", 100, seed=3))


def share(trials: list[Trial], ability: str, groups: set[str] | None = None) -> float:
    done = [trial.done for trial in trials if trial.ability == ability and (not groups or trial.group in groups)]
    assert done
    return sum(done) / len(done)


# ------------------------------------------------------------------------------------------ folder and tokenizer


def test_the_folder_is_small_and_safe() -> None:
    files = {path.name: path.stat().st_size for path in MODEL_FOLDER.iterdir()}
    assert sum(files.values()) <= 6_000_000
    assert {
        "config.json", "generation_config.json", "model.safetensors",
        "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "README.md",
    } == set(files)  # fmt: skip


def test_the_tokenizer_ends_turns_and_pads_as_the_model_is_configured(speaker: Speaker) -> None:
    for config in (speaker.model.config, speaker.model.generation_config):
        assert config.eos_token_id == speaker.tokenizer.convert_tokens_to_ids("<end>")
        assert config.pad_token_id == speaker.tokenizer.convert_tokens_to_ids("<pad>")
    assert speaker.model.config.vocab_size == len(speaker.tokenizer)


def test_every_text_encodes_without_unknown_words_and_decodes_exactly(speaker: Speaker) -> None:
    tokenizer = speaker.tokenizer
    for problem in problems("train", 400, seed=4):
        texts = {problem.question, problem.steps, problem.standard_answer}
        texts |= {text for mistake in problem.mistakes for text in (mistake.response, mistake.judgment)}
        for text in texts:
            ids = tokenizer(text)["input_ids"]
            assert tokenizer.unk_token_id not in ids, text
            assert tokenizer.decode(ids) == text


def test_every_prompt_encodes_without_unknown_words(speaker: Speaker) -> None:
    for problem in problems("train", 50, seed=4):
        mistake = problem.mistakes[0]
        row = fields(problem, judgment=mistake.judgment, response=mistake.response)
        for kind in KINDS:
            ids = prompt_ids(speaker.tokenizer, speaker.prompts, kind, row)
            assert speaker.tokenizer.unk_token_id not in ids
            text = speaker.tokenizer.decode(ids)
            assert text == f"<user> {user_message(speaker.prompts, kind, row)}<end><assistant>"


def test_a_response_has_the_same_ids_alone_and_within_a_prompt(speaker: Speaker, asked: list[Problem]) -> None:
    for problem in asked:
        alone = speaker.tokenizer(problem.steps)["input_ids"]
        within = speaker.tokenizer(f"Response: {problem.steps} Name")["input_ids"]
        assert within[-1 - len(alone) : -1] == alone


def test_chat_template_takes_a_system_message(speaker: Speaker) -> None:
    messages = [
        {"role": "system", "content": "Name the mistake."},
        {"role": "user", "content": "How many?"},
        {"role": "assistant", "content": "#### 43"},
    ]
    text = speaker.tokenizer.apply_chat_template(messages, tokenize=False)
    assert text == "<system>Name the mistake.<end><user>How many?<end><assistant>#### 43<end>"


def test_a_word_of_another_world_is_unknown(speaker: Speaker) -> None:
    tokenizer = speaker.tokenizer
    assert tokenizer("zebra")["input_ids"] == [tokenizer.unk_token_id]


def test_the_quickstart_is_a_valid_run() -> None:
    config = RunConfig.model_validate(OmegaConf.to_container(OmegaConf.load(QUICKSTART)))
    assert config.model.path == "sandbox"
    assert config.policies[0].name == "nlft"
    assert QUICKSTART.read_text().startswith("# nlft-ray quickstart")


# ------------------------------------------------------------------------------------------ what the model can do


@pytest.fixture(scope="module")
def base(speaker: Speaker, asked: list[Problem]) -> list[Trial]:
    torch.manual_seed(0)
    return base_trials(speaker, asked)


def test_habits_rule_the_base_context(base: list[Trial]) -> None:
    assert share(base, "base, greedy", WITH_HABIT) <= 0.15
    assert 0.1 <= share(base, "base, sampled", WITH_HABIT) <= 0.5


def test_skills_without_a_habit_are_mastered(base: list[Trial]) -> None:
    without = {skill.name for skill in SKILLS} - WITH_HABIT
    assert share(base, "base, greedy", without) >= 0.7


def test_the_standard_context_does_it_right(base: list[Trial]) -> None:
    assert share(base, "standard") >= 0.9


def test_the_judge_context_makes_the_mistake_that_is_named(speaker: Speaker, asked: list[Problem]) -> None:
    assert share(habit_trials(speaker, asked), "judge, habit named") >= 0.85
    assert share(mistake_trials(speaker, asked[:50], random.Random(0)), "judge: makes it", {"operator"}) >= 0.7


def test_the_model_judges_its_own_responses(speaker: Speaker, asked: list[Problem]) -> None:
    torch.manual_seed(0)
    trials = own_judgment_trials(speaker, asked)
    assert share(trials, "own wrong, mistake named", WITH_HABIT) >= 0.85
    assert share(trials, "own right, called correct") >= 0.9
