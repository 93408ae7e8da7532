"""Completions by an OpenAI-compatible server of the target model, which keeps its own weights.

Prompts and responses travel as token ids where the server can: then they are what the tokenizer here makes and reads,
as with any engine. Else they travel as messages and text, and the response's ids are made of its text.
"""

import asyncio
from collections.abc import Sequence
from typing import Any

from nlft_ray.config import ModelServer
from nlft_ray.errors import UserError
from nlft_ray.models.engines.chat import ChatServer, NoSuchAddress, RequestFailed, RequestRefused
from nlft_ray.models.engines.conversation import Answer, Conversation, Request
from nlft_ray.models.engines.engine import Decoding, Prompt, prompt_seed

_NEUTRAL = {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
"""Settings that servers would otherwise take from the model's own generation configuration."""


class ServerEngine:
    """A server that writes what it is asked for, many prompts at once. `server.prompts` says which way."""

    def __init__(self, server: ModelServer, tokenizer: Any, end_of_turn: int, ends: list[int], max_length: int):
        """Raises UserError: as `Conversation`."""
        self._server, self._tokenizer, self._max_length = server, tokenizer, max_length
        self._conversation = Conversation(server)
        self._end_of_turn, self.ends = end_of_turn, ends
        self.vocabulary = len(tokenizer)

    def __call__(self, prompts: Sequence[Prompt], decoding: Decoding, seed: int) -> list[list[int] | RequestFailed]:
        """New tokens for each prompt, or the failure of its request (see `Engine`).

        Raises:
            UserError: no request can succeed (see `ChatServer`).
        """
        if self._server.prompts == "text":
            requests = [self._as_text(prompt, decoding, prompt_seed(seed, i)) for i, prompt in enumerate(prompts)]
            return [self._ids(answer) for answer in self._conversation.answers(requests, "ask")]
        requests = [self._as_ids(prompt, decoding, prompt_seed(seed, i)) for i, prompt in enumerate(prompts)]
        return [self._ids(answer) for answer in self._conversation.answers(requests, "complete")]

    def _as_ids(self, prompt: Prompt, decoding: Decoding, seed: int) -> Request:
        room = min(decoding.max_new_tokens, self._max_length - len(prompt))
        return ids_request(self._server, prompt, room, self.ends) | _drawing(decoding, seed)

    def _as_text(self, prompt: Prompt, decoding: Decoding, seed: int) -> Request:
        room = min(decoding.max_new_tokens, self._max_length - len(prompt))
        return self._conversation.chat_request(prompt.messages, room, **_drawing(decoding, seed))

    def _ids(self, answer: Answer | RequestFailed) -> list[int] | RequestFailed:
        """The ids of an answer, with the end of the turn: some servers leave out what they stopped at."""
        if isinstance(answer, RequestFailed):
            return answer
        if "ids" in answer:
            ids = list(answer["ids"])
        else:
            ids = list(self._tokenizer(answer["judgment"], add_special_tokens=False)["input_ids"])
        if answer["finish_reason"] == "stop" and (not ids or ids[-1] not in self.ends):
            ids.append(self._end_of_turn)
        return ids


def _drawing(decoding: Decoding, seed: int) -> Request:
    if decoding.temperature == 0:
        return {"temperature": 0.0}
    return {"temperature": decoding.temperature, "top_p": decoding.top_p, "seed": seed}


def ids_request(server: ModelServer, prompt: Sequence[int], max_new_tokens: int, ends: list[int]) -> Request:
    """The body of a request whose prompt is token ids and whose answer shall hold ids."""
    more = {"return_token_ids": True, "stop_token_ids": ends, **_NEUTRAL}
    return {"model": server.model, "prompt": list(prompt), "max_tokens": max_new_tokens, "extra_body": more}


def way_of_prompts(server: ModelServer, ends: list[int]) -> str:
    """Whether a server takes token ids and gives them back (`ids`), or not (`text`): it is asked for one token.

    Raises:
        UserError: it cannot be asked now (see `ChatServer`).
    """
    chat = ChatServer(server)

    async def ask_for_one_token() -> None:
        async with chat.client() as client:
            await chat.complete(client, ids_request(server, ends[:1], 1, ends))

    try:
        asyncio.run(ask_for_one_token())
    except (NoSuchAddress, RequestRefused):
        return "text"
    except RequestFailed as failure:
        raise UserError(
            f"server: whether {server.base_url} takes token ids could not be asked: {failure}. Try again later, or set "
            "server.prompts."
        ) from failure
    return "ids"
