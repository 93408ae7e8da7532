"""One request to an OpenAI-compatible server: how it is sent, and what its failures mean.

A failure that every other request would share (no server, no access, no such model, no money) is the user's to mend
and ends the stage; work that is done stays done. Any other concerns one row.
"""

import ipaddress
import os
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from nlft_ray.config import JudgeServer
from nlft_ray.errors import UserError

if TYPE_CHECKING:
    from openai import APIStatusError, AsyncOpenAI

FAILED, SILENT = "the server failed", "the server did not answer"
"""How the reasons begin of requests that may be answered another time."""
_LONGEST_MESSAGE = 160
_DUMMY_KEY = "no-key-needed"
_STATUS_NO_ACCESS = (401, 403)
_STATUS_NOT_FOUND = 404


class RequestFailed(Exception):
    """One request could not be answered. Its text is a reject's reason."""


class RequestRefused(RequestFailed):
    """A request could not be answered because of what it asks; asking again would not help."""


class NoSuchAddress(UserError):
    """The server knows no such model, or has nothing at that address."""


class ChatServer:
    """The way to a server: it holds the key, and keeps it out of every message."""

    def __init__(self, server: JudgeServer):
        """Raises UserError: the `openai` package is missing, or the key's variable is unset or holds no key."""
        try:
            import openai
        except ImportError as error:
            raise UserError(
                "server needs the package openai, which is not installed: pip install 'nlft-ray[server]'"
            ) from error
        self._openai = openai
        self._server = server
        self._key = _key(server)

    def client(self) -> "AsyncOpenAI":
        """A client for one event loop; it tries again, waiting twice as long each time."""
        return self._openai.AsyncOpenAI(
            api_key=self._key,
            base_url=self._server.base_url,
            timeout=self._server.timeout_seconds,
            max_retries=self._server.max_retries,
        )

    async def ask(self, client: "AsyncOpenAI", request: dict[str, Any]) -> dict[str, Any]:
        """The answer to a request: its text, why it ended there, and the tokens that were paid for.

        Raises:
            UserError: no request can succeed.
            RequestFailed: this one did not.
        """
        completion = await self._answer(client.chat.completions.create(**request))
        choice, usage = completion.choices[0], completion.usage
        return {
            "judgment": (choice.message.content or "").strip(),
            "finish_reason": choice.finish_reason,
            "tokens": usage.total_tokens if usage else 0,
        }

    async def complete(self, client: "AsyncOpenAI", request: dict[str, Any]) -> dict[str, Any]:
        """The answer to a request whose prompt are token ids: the ids that follow, and why they ended there.

        Raises:
            UserError: no request can succeed.
            RequestFailed: this one did not, or came back without ids.
        """
        completion = await self._answer(client.completions.create(**request))
        choice, usage = completion.choices[0], completion.usage
        ids = getattr(choice, "token_ids", None)
        if ids is None:
            raise RequestRefused("the server's answer holds no token ids")
        return {
            "ids": list(ids),
            "finish_reason": choice.finish_reason,
            "tokens": usage.total_tokens if usage else 0,
        }

    async def _answer(self, request: Awaitable[Any]) -> Any:
        tries = self._server.max_retries + 1
        try:
            completion = await request
        except self._openai.APITimeoutError:
            raise RequestFailed(f"{SILENT}: {tries} tries of {self._server.timeout_seconds:g} s") from None
        except self._openai.APIConnectionError as error:
            cause = self._clean(str(error.__cause__ or error))
            raise UserError(
                f"server.base_url: {self._server.base_url} cannot be reached, in {tries} tries: {cause}. "
                "Start the server and run the same command again: what is answered already is kept."
            ) from None
        except self._openai.APIStatusError as error:
            raise self._meaning(error, tries) from None
        except (self._openai.OpenAIError, ValueError) as error:
            raise RequestRefused(f"the server's answer cannot be read: {self._clean(str(error))}") from None
        if not getattr(completion, "choices", None):
            raise RequestRefused("the server's answer is no completion")
        return completion

    def _meaning(self, error: "APIStatusError", tries: int) -> UserError | RequestFailed:
        status, server, message = error.status_code, self._server, self._clean(_message(error))
        if status in _STATUS_NO_ACCESS:
            return UserError(
                f"server: {server.base_url} refuses the key of {server.api_key_variable} ({status}): {message}"
            )
        if status == _STATUS_NOT_FOUND:
            return NoSuchAddress(
                f"server: {server.base_url} has no model {server.model!r}, or no completions at that "
                f"address ({status}): {message}"
            )
        if error.code == "insufficient_quota":
            return UserError(f"server: {server.base_url} says that the account is used up: {message}")
        if status >= 500 or status == 429:
            return RequestFailed(f"{FAILED} with status {status}: {tries} tries, {message}")
        return RequestRefused(f"the server refused with status {status}: {message}")

    def _clean(self, text: str) -> str:
        """One short line without the key, whatever a server echoes."""
        return " ".join(text.replace(self._key, "[key]").split())[:_LONGEST_MESSAGE]


def _message(error: "APIStatusError") -> str:
    if isinstance(error.body, dict):
        return str(error.body.get("message") or error.body.get("detail") or error.body)
    return str(error.body or error.message)


def _key(server: JudgeServer) -> str:
    key = os.environ.get(server.api_key_variable, "").strip()  # a secret that was a file often ends in a newline
    if not (key.isascii() and key.isprintable()):
        raise UserError(f"server: the environment variable {server.api_key_variable} holds characters that no key has.")
    if key:
        return key
    if _is_loopback(server.base_url):
        return _DUMMY_KEY  # a server of one's own asks for none, but the client insists on one
    raise UserError(
        f"server: the environment variable {server.api_key_variable} is not set where the actors run. Set it "
        f"to the key of {server.base_url}, or name another with server.api_key_variable."
    )


def _is_loopback(base_url: str) -> bool:
    host = urlsplit(base_url).hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
