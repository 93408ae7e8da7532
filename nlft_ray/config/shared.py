"""Settings that several stages share: the model, the prompts, the pool of actors."""

import datetime
import os
import re
from typing import Annotated, Any, Literal

import jinja2
import jinja2.meta
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveInt,
    model_validator,
)
from pydantic_core import PydanticCustomError

Fraction = Annotated[float, Field(ge=0, le=1)]

_SECRET_OPTION = re.compile(r"(?i)(^|&)[^=&]*(secret|password|token|key|signature|sig)=")


def without_credentials(address: str) -> str:
    """The address itself, unless it holds a password or a key: addresses are written into manifests and logs.

    Raises:
        PydanticCustomError: it holds one, as in `scheme://user:password@host` or `?client_secret=…`; of the type
            "secret", since messages must not repeat the value.
    """
    user, at, _ = address.partition("://")[2].partition("/")[0].rpartition("@")
    if at and ":" in user:
        raise PydanticCustomError("secret", "it holds a user and a password: give those in the environment")
    if "://" in address and _SECRET_OPTION.search(address.partition("?")[2]):
        raise PydanticCustomError(
            "secret", "it holds a key or a token after the question mark: give it in the environment"
        )
    return address


def _absolute(path: str) -> str:
    path = without_credentials(path)
    return path if "://" in path else os.path.abspath(os.path.expanduser(path))


def _absolute_if_exists(name: str) -> str:
    name = without_credentials(name)
    return _absolute(name) if os.path.exists(os.path.expanduser(name)) else name


# Made absolute at once: workers on Ray may run in another directory.
FolderPath = Annotated[str, AfterValidator(_absolute)]
PathOrName = Annotated[str, AfterValidator(_absolute_if_exists)]
Address = Annotated[str, AfterValidator(without_credentials)]


class NotIdentity:
    """Mark of a field that says where or how fast, never what comes out: `Annotated[int, NotIdentity()]`.

    A stage may go on, or be complete, under another value of it.
    """


class IdentityWhenSet:
    """Mark of a field that stands in identities only where it is not None: most outputs do not depend on it."""


class IdentityUnless:
    """Mark of a field that stands in identities only where it is none of `values`, which change nothing there."""

    def __init__(self, *values: Any):
        self.values = values


class Strict(BaseModel):
    """A configuration: unknown keys and wrong types are errors, and values never change after validation."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=(), populate_by_name=True
    )

    def identity(self) -> dict[str, Any]:
        """Settings that determine the output, as JSON: all fields but those that their marks leave out."""
        return self.model_dump(mode="json", by_alias=True, exclude=self._not_identity())

    def _not_identity(self) -> dict[str, Any]:
        """Fields that are left out, as pydantic's `exclude` names them."""
        marked: dict[str, Any] = {}
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            left_out = (NotIdentity, IdentityWhenSet) if value is None else NotIdentity
            unless = [mark.values for mark in field.metadata if isinstance(mark, IdentityUnless)]
            if any(isinstance(mark, left_out) for mark in field.metadata) or any(value in values for values in unless):
                marked[name] = True
            elif isinstance(value, Strict) and (inner := value._not_identity()):
                marked[name] = inner
        return marked


DType = Literal["float32", "bfloat16"]


def automatic_dtype(*, on_gpu: bool) -> DType:
    """The type that `model.dtype: auto` stands for."""
    return "bfloat16" if on_gpu else "float32"


class ModelConfig(Strict):
    """The target model."""

    path: PathOrName
    """Folder, URI or hub name of a causal language model, or of adapters (PEFT) that name theirs; `sandbox` is the
    small one that comes with the package."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    commit: Annotated[str | None, IdentityWhenSet()] = None
    """Commit that the revision is on the hub; unset, looked up once, when the output (or the run) is begun."""
    dtype: Literal["auto"] | DType = "auto"
    """Type of the weights in memory; `auto` is bfloat16 where workers have GPUs and float32 where they have none. An
    output that was begun goes on in its type."""
    quantization: dict[str, Any] | None = None
    """Load the weights quantised: transformers' settings for it, such as
    {quant_method: bitsandbytes, load_in_4bit: true}. It needs the method's own package, and LoRA to train."""
    attention: Literal["auto", "sdpa", "eager", "flash_attention_2"] = "auto"
    """Attention implementation of transformers; `auto` is sdpa where the model's family has it and eager where not. An
    output that was begun goes on with its own."""
    max_length: PositiveInt | None = None
    """Most tokens of prompt and response together; unset, what the model's configuration allows."""
    end_of_turn_token: str | None = None
    """Token that ends a response; unset, what the chat template puts after an assistant's words, else what the model's
    generation configuration stops at, else the tokenizer's end-of-sequence token."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Leave it off for models that you do not trust."""


def _was(name: str) -> Any:
    """A field that had another name, which is accepted too, and still stands in identities and fingerprints."""
    return Field(validation_alias=name, serialization_alias=name)


_TEMPLATE_FIELDS = {"question", "instruction", "standard_answer", "judgment", "response"}
_MUST_NAME = {
    "base": {"question"},
    "judge": {"question", "judgment"},
    "standard": {"question", "standard_answer"},
    "ask_judgment": {"question", "response"},
}


class PromptConfig(Strict):
    """The prompts, as Jinja templates over the columns of the examples table."""

    base: str = "{{ question }}"
    """User message of the base context: the task as the model will meet it."""
    judge: str = (
        "{{ question }}\n\nWrite a bad response to this: one that has the following weakness.\n\n"
        "Weakness: {{ judgment }}"
    )
    """User message of the judge context: asks for a response with the weakness that the judgment names."""
    standard: str = (
        "{{ question }}\n\nYou are an expert on this. Here is the standard answer; write a response that reaches it."
        "\n\nStandard answer: {{ standard_answer }}"
    )
    """User message of the standard context: act as an expert, here is the standard answer."""
    ask_judgment: Annotated[str, _was("judging")] = (
        "Here are a question and a response to it."
        "\n\nQuestion: {{ question }}"
        "{% if standard_answer %}\n\nStandard answer: {{ standard_answer }}{% endif %}"
        "\n\nResponse: {{ response }}"
        "\n\nThe response is thought to be wrong. Name its first mistake in one or two sentences: what it says, and "
        "why that is wrong. Do not solve the question again. If the response is right after all, write only: CORRECT"
    )
    """User message that asks for a judgment of an incorrect response."""
    plain: str = "{% if instruction %}{{ instruction }}\n\n{% endif %}{{ message }}\n\n"
    """Text around a user message where the tokenizer has no chat template; the response follows it directly."""
    instruction_role: Literal["auto", "system", "user"] = "auto"
    """Where a row's instruction goes: a system message, or ahead of the user message; `auto` is a system message where
    the chat template has a place for one."""
    chat_template_arguments: dict[str, Any] = {}
    """Extra arguments of the tokenizer's chat template, such as `enable_thinking: false`."""
    date: Annotated[datetime.date | None, IdentityWhenSet()] = None
    """Date (2026-11-27) that is told to chat templates which ask for today's; unset, the day on which the output, or
    the run, was begun. Other templates are not told it."""

    @model_validator(mode="after")
    def _templates_name_their_fields(self) -> "PromptConfig":
        problems = []
        for name in (*_MUST_NAME, "plain"):
            allowed = {"instruction", "message"} if name == "plain" else _TEMPLATE_FIELDS
            required = {"message"} if name == "plain" else _MUST_NAME[name]
            try:
                used = jinja2.meta.find_undeclared_variables(jinja2.Environment().parse(getattr(self, name)))
            except jinja2.TemplateSyntaxError as error:
                problems.append(f"template '{name}' does not parse: {error}")
                continue
            if used - allowed:
                problems.append(f"template '{name}' names {sorted(used - allowed)}; it may name {sorted(allowed)}")
            if required - used:
                problems.append(f"template '{name}' must name {sorted(required - used)}")
        if problems:
            raise ValueError("; ".join(problems))
        return self


Backend = Literal["ray", "inline"]


class PoolConfig(Strict):
    """The workers of a stage: where they run, how many, how large."""

    backend: Annotated[Backend, NotIdentity()] = "ray"
    """Where the work is done: `ray`, by actors on a Ray cluster; or `inline`, by one worker in this process, where a
    debugger's breakpoint stops. Both give the same table."""
    min_workers: PositiveInt = 1
    """Actors that are kept at the least."""
    max_workers: PositiveInt | None = None
    """Actors at the most, which are also asked of a cluster that can grow; unset, as many as find room, also on nodes
    that join."""
    cpus_per_worker: PositiveInt = 1
    """CPU cores, and threads, of one actor."""
    gpus_per_worker: NonNegativeFloat | None = None
    """GPUs of one actor, over which a model too large for one is spread; unset, 1 where nodes with these labels have
    GPUs and 0 elsewhere."""
    tensor_parallel: PositiveInt = 1
    """Processes of one actor, all on one node, that share each layer of the model and work in step: for a model too
    large for one GPU. CPU cores and GPUs are then those of each process. It must divide the model's attention heads."""
    label_selector: dict[str, str] = {}
    """Labels that a node must have to be given actors, such as `pool: score`."""
    rows_per_shard: PositiveInt | None = None
    """Rows of one unit of work, which is one output file; unset, chosen from the number of rows."""

    @model_validator(mode="after")
    def _bounds_in_order(self) -> "PoolConfig":
        if self.max_workers is not None and self.max_workers < self.min_workers:
            raise ValueError(f"max_workers ({self.max_workers}) is below min_workers ({self.min_workers})")
        return self

    @model_validator(mode="after")
    def _processes_have_whole_gpus(self) -> "PoolConfig":
        if self.tensor_parallel > 1 and self.gpus_per_worker not in (None, 0, 1):
            raise ValueError(
                f"gpus_per_worker: with tensor_parallel={self.tensor_parallel} it counts the GPUs of each process: "
                f"leave it out, or set 1 (or 0, for CPUs); it is {self.gpus_per_worker:g}"
            )
        return self

    @model_validator(mode="after")
    def _inline_is_one_worker_here(self) -> "PoolConfig":
        if self.backend == "inline":
            for name in ("min_workers", "label_selector", "tensor_parallel"):
                if getattr(self, name) != type(self).model_fields[name].default:
                    raise ValueError(
                        f"backend: inline is one worker in this process: leave out {name}, or use backend: ray"
                    )
        return self
