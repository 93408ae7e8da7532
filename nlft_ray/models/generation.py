"""Batched generation in one process: completions of prompts. Knows neither tables nor Ray."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel

from nlft_ray.config import ModelConfig, PromptConfig
from nlft_ray.models.loading import load_model, load_tokenizer, max_length, vocabulary_size
from nlft_ray.models.memory import Batches
from nlft_ray.models.prompts import PromptKind, prompt_ids
from nlft_ray.models.sharding import is_shared
from nlft_ray.models.turns import end_of_turn, instruction_role

_ADVICE = (
    "Lower max_new_tokens or model.max_length, take model.dtype=bfloat16, or give a worker more: pool.gpus_per_worker, "
    "or fewer workers on a node by pool.max_workers."
)


@dataclass(frozen=True)
class Decoding:
    """Settings by which tokens are chosen."""

    max_new_tokens: int
    temperature: float = 0.0  # 0 is greedy
    top_p: float = 1.0


@dataclass(frozen=True)
class Completion:
    """The model's text after a prompt, or the reason why there is none."""

    prompt_tokens: int
    ids: list[int] = field(default_factory=list)
    """Ids of the text, with the end-of-turn token where the model wrote one."""
    text: str = ""
    """The text without special tokens, and without white space around it."""
    ended: bool = False
    """Whether the model ended its turn; False where it was cut off."""
    problem: str | None = None
    """Reason why there is no completion: the prompt is too long."""

    @property
    def tokens(self) -> int:
        """Tokens that went through the model."""
        return 0 if self.problem else self.prompt_tokens + len(self.ids)


class PromptedModel:
    """The target model with its tokenizer and prompts, as sampling, judging and evaluation use it.

    Of `tensor_parallel` processes, each has its part of the model; they answer in step, with the same seeds.

    Raises:
        UserError: the model or its tokenizer does not load.
    """

    def __init__(self, model: ModelConfig, prompts: PromptConfig, batch_size: int, tensor_parallel: int = 1):
        self._tokenizer = load_tokenizer(model)
        self._prompts = prompts.model_copy(update={"instruction_role": instruction_role(self._tokenizer, prompts)})
        self._max_length = max_length(model)
        loaded = load_model(model, spread=True, tensor_parallel=tensor_parallel)
        self._vocabulary = vocabulary_size(loaded)
        self._generate = Generator(
            loaded,
            end_of_turn=end_of_turn(self._tokenizer, model, prompts).id,
            max_length=self._max_length,
            batch_size=batch_size,
        )

    def answer(
        self, kind: PromptKind, rows: Sequence[Mapping[str, Any]], decoding: Decoding, seed: int
    ) -> list[Completion]:
        """A completion of each row's prompt, in order; of one that the model cannot complete, the problem."""
        prompts = [prompt_ids(self._tokenizer, self._prompts, kind, row) for row in rows]
        problems = [self._problem_with(kind, prompt) for prompt in prompts]
        fitting = [prompt for prompt, problem in zip(prompts, problems, strict=True) if problem is None]
        responses = iter(self._generate(fitting, decoding, seed) if fitting else [])
        return [
            Completion(prompt_tokens=len(prompt), problem=problem)
            if problem
            else self._completion(prompt, next(responses))
            for prompt, problem in zip(prompts, problems, strict=True)
        ]

    def _completion(self, prompt: Sequence[int], ids: list[int]) -> Completion:
        return Completion(
            prompt_tokens=len(prompt),
            ids=ids,
            text=self._tokenizer.decode(ids, skip_special_tokens=True).strip(),
            ended=ids[-1] in self._generate.ends,
        )

    def _problem_with(self, kind: PromptKind, prompt: Sequence[int]) -> str | None:
        """Why the model cannot complete a prompt; None where it can."""
        if len(prompt) >= self._max_length:
            return f"too long: its {kind} prompt of {len(prompt)} tokens leaves no room in {self._max_length}"
        if (largest := max(prompt)) >= self._vocabulary:
            return f"unknown token: id {largest}, where the model knows {self._vocabulary} of them"
        return None


class Generator:
    """A model that continues prompts. On a CPU, seed, prompts and batch size determine what comes out, bit for bit.

    A batch that memory does not hold is halved, and later ones are no larger; other random numbers are drawn then.
    """

    def __init__(self, model: PreTrainedModel, *, end_of_turn: int, max_length: int, batch_size: int):
        self._model = model
        self._max_length = max_length
        self._batch_size = batch_size
        self._memory = Batches("prompts and what may follow them", _ADVICE, halves=not is_shared(model))
        own = getattr(model.generation_config, "eos_token_id", None)
        self.ends = sorted({end_of_turn, *(own if isinstance(own, list) else [own] if own is not None else [])})
        # transformers fills whatever is not said from here: a repetition penalty of the model's file, for one
        model.generation_config = GenerationConfig()
        self._end_of_turn = end_of_turn

    def __call__(self, prompts: Sequence[Sequence[int]], decoding: Decoding, seed: int) -> list[list[int]]:
        """New tokens for each prompt, the end-of-turn token included where the model wrote one.

        A prompt that leaves no room for `max_new_tokens` gets what room there is; it must leave room for one.
        """
        torch.manual_seed(seed)
        order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))  # little padding in a batch
        responses: list[list[int]] = [[] for _ in prompts]
        for start in range(0, len(order), self._batch_size):
            batch = order[start : start + self._batch_size]
            some = self._memory.run(
                [prompts[index] for index in batch],
                lambda prompt: len(prompt) + decoding.max_new_tokens,
                lambda prompts: self._generate(prompts, decoding),
            )
            for index, response in zip(batch, some, strict=True):
                responses[index] = response
        return responses

    @torch.inference_mode()
    def _generate(self, prompts: Sequence[Sequence[int]], decoding: Decoding) -> list[list[int]]:
        longest = max(map(len, prompts))
        pad = self._end_of_turn  # masked, so any id will do
        input_ids = torch.tensor([[pad] * (longest - len(ids)) + list(ids) for ids in prompts])
        mask = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompts])
        sampling: dict[str, Any] = {"do_sample": False}
        if decoding.temperature > 0:
            sampling = {
                "do_sample": True,
                "temperature": decoding.temperature,
                "top_p": decoding.top_p,
                "top_k": 0,  # transformers would cut to 50 by default
            }
        output = self._model.generate(  # type: ignore[operator]
            input_ids=input_ids.to(self._model.device),
            attention_mask=mask.to(self._model.device),
            generation_config=GenerationConfig(
                max_new_tokens=min(decoding.max_new_tokens, self._max_length - longest),
                eos_token_id=self.ends,
                pad_token_id=pad,
                **sampling,
            ),
        )
        return [self._until_end(row) for row in output[:, longest:].tolist()]

    def _until_end(self, ids: list[int]) -> list[int]:
        for position, token in enumerate(ids):
            if token in self.ends:
                return ids[: position + 1]
        return ids
