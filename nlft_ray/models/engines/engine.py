"""The terms in which engines are asked: prompts as token ids, settings, and what comes back."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import transformers

from nlft_ray.config import ModelConfig
from nlft_ray.models.engines.chat import RequestFailed
from nlft_ray.models.folders import model_folder


@dataclass(frozen=True)
class Decoding:
    """Settings by which tokens are chosen."""

    max_new_tokens: int
    temperature: float = 0.0  # 0 is greedy
    top_p: float = 1.0


class Prompt(list[int]):
    """Token ids of a prompt, and the chat messages that were rendered to them."""

    def __init__(self, ids: Sequence[int], messages: list[dict[str, str]]):
        super().__init__(ids)
        self.messages = messages


class Engine(Protocol):
    """Something that runs a model on prompts."""

    ends: list[int]
    """Ids that end a turn."""
    vocabulary: int
    """Number of ids that the model knows."""

    def __call__(self, prompts: Sequence[Prompt], decoding: Decoding, seed: int) -> Sequence[list[int] | RequestFailed]:
        """New tokens for each prompt, in order, with the token of `ends` where the model wrote one; or why not.

        A prompt that leaves no room for `max_new_tokens` gets what room there is; it must leave room for one.
        """
        ...


def all_ends(model: ModelConfig, end_of_turn: int) -> list[int]:
    """The end of a turn, and what the model's own generation configuration stops at besides."""
    folder = model_folder(model, weights=False)
    try:
        own = transformers.GenerationConfig.from_pretrained(folder).eos_token_id
    except OSError:  # it has none
        settings = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=model.trust_remote_code)
        own = settings.get_text_config().eos_token_id
    return sorted({end_of_turn, *(own if isinstance(own, list) else [own] if own is not None else [])})


def prompt_seed(seed: int, number: int) -> int:
    """A seed of the prompt with this number among those that a shard's `seed` is for: none depends on its batch."""
    return (seed * 1_000_003 + number) % 2**31  # servers take no larger ones
