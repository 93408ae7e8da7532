"""Settings of what writes texts, which `sample`, `judge` and `evaluate` share: the engine, and servers."""

from typing import Annotated, Any, Literal

from pydantic import NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from nlft_ray.config.shared import Address, FolderPath, IdentityUnless, IdentityWhenSet, NotIdentity, Strict

USUAL_BATCH_SIZE = {"gpu": 128, "cpu": 32}
"""Texts generated at once, by device: a step of decoding takes a GPU about the same time for one as for many."""


class JudgeServer(Strict):
    """An OpenAI-compatible server."""

    base_url: Address
    """Address of the server, such as https://api.openai.com/v1 or http://127.0.0.1:8000/v1."""
    model: str
    """Model name that the server knows."""
    api_key_variable: Annotated[str, NotIdentity()] = "OPENAI_API_KEY"
    """Environment variable that holds the key. The key itself is never written anywhere."""
    concurrency: Annotated[PositiveInt, NotIdentity()] = 8
    """Requests under way at once, per actor."""
    timeout_seconds: Annotated[PositiveFloat, NotIdentity()] = 120
    """Longest wait for one answer."""
    max_retries: Annotated[NonNegativeInt, NotIdentity()] = 6
    """Tries after the first, with exponential back-off."""
    cache: Annotated[FolderPath | None, NotIdentity()] = None
    """Folder of answers already paid for; unset, `judgment_cache` beside a judge's output, else `answer_cache`."""


class ModelServer(JudgeServer):
    """An OpenAI-compatible server of the target model."""

    prompts: Annotated[Literal["ids", "text"] | None, IdentityWhenSet()] = None
    """`ids`: prompts and responses travel as token ids. `text`: as messages and text, of which ids are made anew.
    Unset, ids where the server takes them and gives them back; an output that was begun goes on in its way."""


class GenerationOptions(Strict):
    """What writes texts: the engine, and how much it is given at once."""

    engine: Annotated[Literal["transformers", "vllm", "server"], IdentityUnless("transformers", "server")] = (
        "transformers"
    )
    """What runs the model: `transformers`; `vllm`, in the same actors, which needs nlft-ray[vllm]; or `server`, which
    is also meant wherever `server` is set, and whose actors take no GPU."""
    server: Annotated[ModelServer | None, IdentityWhenSet()] = None
    """An OpenAI-compatible server of the target model; `model` then only gives tokenizer and chat template."""
    batch_size: PositiveInt | None = None
    """Texts generated at once by one actor, as far as its memory holds them; unset, 128 on a GPU and 32 on a CPU. An
    output that was begun goes on with its own."""

    @model_validator(mode="before")
    @classmethod
    def _a_server_is_the_engine(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("server") is not None:
            return {"engine": "server", **values}
        return values

    @model_validator(mode="after")
    def _engine_and_server_belong_together(self) -> "GenerationOptions":
        if (self.engine == "server") != (self.server is not None):
            raise ValueError("engine=server needs `server.base_url` and `server.model`, and only it takes them")
        return self
