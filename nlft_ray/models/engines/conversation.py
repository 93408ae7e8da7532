"""Many requests to a server at once, and none twice."""

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeVar
from urllib.parse import urlsplit

from nlft_ray.config import EvaluateConfig, JudgeConfig, JudgeServer, SampleConfig
from nlft_ray.models.engines.cache import AnswerCache
from nlft_ray.models.engines.chat import ChatServer, RequestFailed
from nlft_ray.storage.folder import Folder

if TYPE_CHECKING:
    from openai import AsyncOpenAI

Config = TypeVar("Config", SampleConfig, JudgeConfig, EvaluateConfig)
Request = dict[str, Any]
Answer = dict[str, Any]
Way = Literal["ask", "complete"]
"""The method of `ChatServer` that a request is for."""
_OPENAI = "api.openai.com"


class Conversation:
    """Requests to one server, answered by the cache where it can. The server's cache folder must be set."""

    def __init__(self, server: JudgeServer):
        """Raises UserError: see `ChatServer`; but only once there is something to ask."""
        assert server.cache is not None
        self._server = server
        self._cache = AnswerCache(Folder(server.cache))
        self._base_url = server.base_url.rstrip("/")
        self._way_there: ChatServer | None = None
        self.counts = Counter[str]({"requests": 0, "cache_hits": 0})
        self.tokens = 0
        """Tokens that the server counted, of what was asked."""

    def chat_request(self, messages: list[dict[str, str]], max_new_tokens: int, **settings: Any) -> Request:
        """The body of a chat request. OpenAI itself renamed `max_tokens`, which most others know by its old name."""
        host = urlsplit(self._server.base_url).hostname
        limit = "max_completion_tokens" if host == _OPENAI else "max_tokens"
        return {"model": self._server.model, "messages": messages, limit: max_new_tokens, **settings}

    def answers(self, requests: Sequence[Request], way: Way = "ask") -> list[Answer | RequestFailed]:
        """The answer to each request, in order, or why there is none. Equal requests share one.

        Raises:
            UserError: no request can succeed (see `ChatServer`).
        """
        if not requests:
            return []
        self._way_there = self._way_there or ChatServer(self._server)
        names = [json.dumps(request, sort_keys=True) for request in requests]
        different = dict(zip(names, requests, strict=True))
        found = asyncio.run(self._answer_all(self._way_there, list(different.values()), way))
        by_name = dict(zip(different, found, strict=True))
        return [by_name[name] for name in names]

    async def _answer_all(self, chat: ChatServer, requests: list[Request], way: Way) -> list[Answer | RequestFailed]:
        slots = asyncio.Semaphore(self._server.concurrency)
        async with chat.client() as client:
            send: Callable[[AsyncOpenAI, Request], Awaitable[Answer]] = getattr(chat, way)

            async def answer(request: Request) -> Answer | RequestFailed:
                async with slots:
                    return await self._answer(partial(send, client), request)

            return list(await asyncio.gather(*map(answer, requests)))

    async def _answer(self, send: Callable[[Request], Awaitable[Answer]], request: Request) -> Answer | RequestFailed:
        key = {"base_url": self._base_url, **request}
        answer = await asyncio.to_thread(self._cache.get, key)  # in a thread: it may be an object store
        if answer is not None:
            self.counts["cache_hits"] += 1
            return answer
        self.counts["requests"] += 1
        try:
            answer = await send(request)
        except RequestFailed as failure:
            return failure
        self.tokens += answer["tokens"]
        await asyncio.to_thread(self._cache.put, key, answer)
        return answer


def with_cache(config: Config, name: str) -> Config:
    """A stage's configuration with the folder of its server's cache, by default one called `name` beside the output."""
    if config.server is None:
        return config
    cache = config.server.cache or str(Folder(config.output).parent / name)
    return config.model_copy(update={"server": config.server.model_copy(update={"cache": cache})})
