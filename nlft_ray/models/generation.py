"""Completions of prompts in one process, whatever engine writes them. Knows neither tables nor Ray."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nlft_ray.config import ModelConfig, ModelServer, PromptConfig
from nlft_ray.config.engines import USUAL_BATCH_SIZE
from nlft_ray.errors import UserError
from nlft_ray.models.engines.chat import RequestFailed
from nlft_ray.models.engines.engine import Decoding, Engine, Prompt, all_ends
from nlft_ray.models.loading import device, load_model, load_tokenizer, max_length
from nlft_ray.models.prompts import PromptKind, chat_messages, prompt_ids
from nlft_ray.models.turns import end_of_turn, instruction_role


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
    """Reason why there is no completion, such as a prompt that is too long."""
    unanswered: bool = False
    """Whether that is no fault of the prompt: a server did not answer, and may another time."""

    @property
    def tokens(self) -> int:
        """Tokens that went through the model."""
        return 0 if self.problem else self.prompt_tokens + len(self.ids)


class PromptedModel:
    """The target model with its tokenizer and prompts, as sampling, judging and evaluation use it.

    Of `tensor_parallel` processes, each has its part of the model; they answer in step, with the same seeds.

    Raises:
        UserError: the model or its tokenizer does not load, or the engine is not installed.
    """

    def __init__(
        self,
        model: ModelConfig,
        prompts: PromptConfig,
        batch_size: int | None,
        tensor_parallel: int = 1,
        engine: str = "transformers",
        server: ModelServer | None = None,
    ):
        if tensor_parallel > 1 and engine != "transformers":
            raise UserError(
                f"pool.tensor_parallel: leave it out with engine={engine}; vllm spreads over pool.gpus_per_worker GPUs."
            )
        self._tokenizer = load_tokenizer(model)
        self._prompts = prompts.model_copy(update={"instruction_role": instruction_role(self._tokenizer, prompts)})
        self._max_length = max_length(model)
        batch_size = batch_size or USUAL_BATCH_SIZE["cpu" if device().type == "cpu" else "gpu"]
        end = end_of_turn(self._tokenizer, model, prompts).id
        ends = all_ends(model, end)
        self._engine: Engine
        if server is not None:
            from nlft_ray.models.engines.server import ServerEngine

            self._engine = ServerEngine(server, self._tokenizer, end, ends, self._max_length)
        elif engine == "vllm":
            from nlft_ray.models.engines.vllm import VllmEngine

            self._engine = VllmEngine(model, ends, self._max_length, batch_size)
        else:
            from nlft_ray.models.engines.transformers import Generator

            loaded = load_model(model, spread=True, tensor_parallel=tensor_parallel)
            self._engine = Generator(loaded, ends=ends, max_length=self._max_length, batch_size=batch_size)

    def answer(
        self, kind: PromptKind, rows: Sequence[Mapping[str, Any]], decoding: Decoding, seed: int
    ) -> list[Completion]:
        """A completion of each row's prompt, in order; of one that the model cannot complete, the problem."""
        prompts = [
            Prompt(prompt_ids(self._tokenizer, self._prompts, kind, row), chat_messages(self._prompts, kind, row))
            for row in rows
        ]
        problems = [self._problem_with(kind, prompt) for prompt in prompts]
        fitting = [prompt for prompt, problem in zip(prompts, problems, strict=True) if problem is None]
        written = iter(self._engine(fitting, decoding, seed) if fitting else [])
        return [
            Completion(prompt_tokens=len(prompt), problem=problem)
            if problem
            else self._completion(prompt, next(written))
            for prompt, problem in zip(prompts, problems, strict=True)
        ]

    def _completion(self, prompt: Sequence[int], ids: list[int] | RequestFailed) -> Completion:
        if isinstance(ids, RequestFailed):
            return Completion(prompt_tokens=len(prompt), problem=str(ids), unanswered=True)
        return Completion(
            prompt_tokens=len(prompt),
            ids=ids,
            text=self._tokenizer.decode(ids, skip_special_tokens=True).strip(),
            ended=bool(ids) and ids[-1] in self._engine.ends,
        )

    def _problem_with(self, kind: PromptKind, prompt: Sequence[int]) -> str | None:
        """Why the model cannot complete a prompt; None where it can."""
        if len(prompt) >= self._max_length:
            return f"too long: its {kind} prompt of {len(prompt)} tokens leaves no room in {self._max_length}"
        if (largest := max(prompt)) >= self._engine.vocabulary:
            return f"unknown token: id {largest}, where the model knows {self._engine.vocabulary} of them"
        return None
