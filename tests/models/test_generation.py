"""Generation: greedy equals the plain loop, padding changes nothing, seeds repeat."""

import pytest
import torch

from nlft_ray.config import ModelConfig, PromptConfig
from nlft_ray.models.engines.engine import Decoding
from nlft_ray.models.engines.transformers import Generator
from nlft_ray.models.generation import PromptedModel
from nlft_ray.models.loading import load_model, load_tokenizer

PROMPTS = ["What is 2 + 2?", "Hi", "A longer question, to be padded against: how many legs has a millipede?"]


@pytest.fixture(scope="module")
def prompts(random_llama: str) -> list[list[int]]:
    tokenizer = load_tokenizer(ModelConfig(path=random_llama))
    return [tokenizer(text)["input_ids"] for text in PROMPTS]


def generator(random_llama: str, batch_size: int = 8, max_length: int = 512, end_of_turn: int = 1) -> Generator:
    model = load_model(ModelConfig(path=random_llama))
    return Generator(model, ends=[end_of_turn], max_length=max_length, batch_size=batch_size)


def plain_greedy(model: torch.nn.Module, prompt: list[int], count: int, end: int) -> list[int]:
    ids = list(prompt)
    for _ in range(count):
        with torch.inference_mode():
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == end:
            break
    return ids[len(prompt) :]


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_greedy_is_the_plain_loop_whatever_the_batch(
    random_llama: str, prompts: list[list[int]], batch_size: int
) -> None:
    model = load_model(ModelConfig(path=random_llama))
    found = generator(random_llama, batch_size)(prompts, Decoding(max_new_tokens=12), seed=0)
    assert found == [plain_greedy(model, prompt, 12, end=1) for prompt in prompts]


def test_generation_stops_after_the_end_of_turn(random_llama: str, prompts: list[list[int]]) -> None:
    free = generator(random_llama)(prompts, Decoding(max_new_tokens=12), seed=0)
    end = free[0][3]  # call what it says fourth the end of a turn
    stopped = generator(random_llama, end_of_turn=end)(prompts, Decoding(max_new_tokens=12), seed=0)
    assert stopped[0] == free[0][: free[0].index(end) + 1]
    assert all(end not in response[:-1] for response in stopped)


def test_a_seed_repeats_and_another_differs(random_llama: str, prompts: list[list[int]]) -> None:
    draw = generator(random_llama)
    decoding = Decoding(max_new_tokens=20, temperature=1.0, top_p=0.9)
    assert draw(prompts, decoding, seed=5) == draw(prompts, decoding, seed=5)
    assert draw(prompts, decoding, seed=5) != draw(prompts, decoding, seed=6)


def test_a_prompt_near_the_limit_gets_what_room_there_is(random_llama: str, prompts: list[list[int]]) -> None:
    limit = max(map(len, prompts)) + 3
    found = generator(random_llama, max_length=limit)(prompts[2:], Decoding(max_new_tokens=50), seed=0)
    assert len(found[0]) <= 3


def test_each_row_gets_its_own_answer_or_the_problem(random_llama: str) -> None:
    model = PromptedModel(ModelConfig(path=random_llama), PromptConfig(), batch_size=2)
    rows = [{"question": text} for text in [*PROMPTS[:2], "x" * 600, PROMPTS[2]]]
    decoding = Decoding(max_new_tokens=12)
    answers = model.answer("base", rows, decoding, seed=0)
    long = answers[2]
    assert long.problem == f"too long: its base prompt of {long.prompt_tokens} tokens leaves no room in 512"
    assert (long.ids, long.text, long.ended, long.tokens) == ([], "", False, 0)
    alone = [model.answer("base", [row], decoding, seed=0)[0] for row in rows]
    assert answers == alone
    assert all(answer.tokens == answer.prompt_tokens + len(answer.ids) > 0 for answer in answers if not answer.problem)
    assert model.answer("base", [], decoding, seed=0) == []


def test_memory_that_runs_out_halves_the_batch(
    random_llama: str, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = generator(random_llama)(prompts, Decoding(max_new_tokens=12), seed=0)
    generate, sizes = Generator._generate, []

    def generate_if_it_fits(self: Generator, some: list[list[int]], decoding: Decoding) -> list[list[int]]:
        sizes.append(len(some))
        if len(some) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return generate(self, some, decoding)

    monkeypatch.setattr(Generator, "_generate", generate_if_it_fits)
    assert generator(random_llama)(prompts, Decoding(max_new_tokens=12), seed=0) == whole
    assert sizes[0] == 3
    assert sizes.count(1) == 3


def test_a_prompt_with_ids_that_the_model_has_not_is_a_problem(random_llama: str) -> None:
    model = PromptedModel(ModelConfig(path=random_llama), PromptConfig(), batch_size=2)
    model._engine.vocabulary = 50
    (answer,) = model.answer("base", [{"question": "zz"}], Decoding(max_new_tokens=2), seed=0)
    assert answer.problem is not None
    assert "where the model knows 50" in answer.problem
