"""Judgments by a chat server: many requests at once, and none twice."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import cached_property, partial
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa

from nlft_ray.config import JudgeConfig
from nlft_ray.execution.work import WorkResult
from nlft_ray.models.prompts import chat_messages
from nlft_ray.stages.judge.cache import AnswerCache
from nlft_ray.stages.judge.chat import ChatServer, RequestFailed
from nlft_ray.stages.judge.judging import Answer, Row, needs_judgment, with_answers
from nlft_ray.storage.folder import Folder
from nlft_ray.tables.schema import EXAMPLES

Ask = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]
_OPENAI = "api.openai.com"


class ServerJudge:
    """A worker that sends incorrect responses to `config.server`, whose cache folder must be set."""

    schema = EXAMPLES

    def __init__(self, config: JudgeConfig):
        assert config.server is not None
        assert config.server.cache is not None
        self._config, self._server = config, config.server
        self._cache = AnswerCache(Folder(config.server.cache))

    @cached_property
    def _chat(self) -> ChatServer:
        return ChatServer(self._server)

    def __call__(self, table: pa.Table, seed: int) -> WorkResult:
        """Ask for the judgments of a table. `seed` goes unused: an answer must not depend on how the table is cut.

        Raises:
            UserError: the `openai` package is missing, the key's variable is unset, or the server cannot be reached,
                or refuses the key or the model.
        """
        rows: list[Row] = table.to_pylist()
        messages = {
            index: chat_messages(self._config.prompts, "ask_judgment", row)
            for index, row in enumerate(rows)
            if needs_judgment(row)
        }
        conversation = _Conversation(self._cache, self._server.base_url)
        answers = asyncio.run(self._ask_all(conversation, messages)) if messages else {}
        result = with_answers(rows, answers, self._config.disputed_pattern)
        result.counts |= {name: float(count) for name, count in conversation.counts.items()}
        result.tokens = conversation.tokens
        return result

    def _request(self, messages: list[dict[str, str]]) -> dict[str, Any]:
        """The body of a request. OpenAI itself renamed `max_tokens`, which most other servers know by its old name."""
        host = urlsplit(self._server.base_url).hostname
        limit = "max_completion_tokens" if host == _OPENAI else "max_tokens"
        config = self._config
        request = {
            "model": self._server.model,
            "messages": messages,
            "temperature": config.temperature,
            limit: config.max_new_tokens,
        }
        return request | ({"seed": config.seed} if config.temperature else {})

    async def _ask_all(
        self, conversation: "_Conversation", messages: dict[int, list[dict[str, str]]]
    ) -> dict[int, Answer]:
        """An answer for every index. Rows that make the same request share one."""
        indices: dict[str, list[int]] = {}
        for index, content in messages.items():
            indices.setdefault(repr(content), []).append(index)
        slots = asyncio.Semaphore(self._server.concurrency)
        async with self._chat.client() as client:
            ask = partial(self._chat.ask, client)

            async def answer(index: int) -> Answer:
                async with slots:
                    return await conversation.answer(ask, self._request(messages[index]))

            answers = await asyncio.gather(*(answer(same[0]) for same in indices.values()))
        return {index: shared for same, shared in zip(indices.values(), answers, strict=True) for index in same}


class _Conversation:
    """Requests of one table, answered by the cache where it can."""

    def __init__(self, cache: AnswerCache, base_url: str):
        self._cache, self._base_url = cache, base_url.rstrip("/")
        self.counts = Counter[str]({"requests": 0, "cache_hits": 0})
        self.tokens = 0

    async def answer(self, ask: Ask, request: dict[str, Any]) -> Answer:
        key = {"base_url": self._base_url, **request}
        answer = await asyncio.to_thread(self._cache.get, key)  # in a thread: it may be an object store
        if answer is not None:
            self.counts["cache_hits"] += 1
        else:
            self.counts["requests"] += 1
            try:
                answer = await ask(request)
            except RequestFailed as failure:
                return Answer(failure=str(failure))
            self.tokens += answer["tokens"]
            await asyncio.to_thread(self._cache.put, key, answer)
        return Answer(judgment=answer["judgment"], cut_short=answer["finish_reason"] == "length")
