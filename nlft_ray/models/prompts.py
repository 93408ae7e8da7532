"""The prompts a response is scored under (`base`, `judge`, `standard`) and the one that asks for a judgment.

A prompt is rendered in two steps: a Jinja template of `PromptConfig` makes the user's message, and the tokenizer's
chat template (or, where it has none, `PromptConfig.plain`) wraps it. The response is never part of the rendering:
it is joined as token ids, so that it is the same ids under every context.
"""

import datetime
import hashlib
import json
from collections.abc import Mapping
from typing import Any, Literal

import jinja2.sandbox

from nlft_ray.config import PromptConfig
from nlft_ray.errors import UserError

_CLOCK = "strftime_now"
_DIRECTIVES = [*"aAwdebBmyYHIpMSjUWGuVDF", "-d", "-m"]

PromptKind = Literal["base", "judge", "standard", "ask_judgment"]

_JINJA = jinja2.sandbox.ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)


def user_message(prompts: PromptConfig, kind: PromptKind, row: Mapping[str, Any]) -> str:
    """The user's message of one prompt. `row` holds the columns of the examples table that the template names."""
    return _JINJA.from_string(getattr(prompts, kind)).render(row)


def chat_messages(prompts: PromptConfig, kind: PromptKind, row: Mapping[str, Any]) -> list[dict[str, str]]:
    """The messages of one prompt, for a chat template or a chat server, which knows a system's message.

    `instruction_role` places the instruction; what `auto` is with a chat template, `turns.instruction_role` says.
    """
    instruction = row.get("instruction") or ""
    message = user_message(prompts, kind, row)
    if not instruction:
        return [{"role": "user", "content": message}]
    if prompts.instruction_role == "user":
        return [{"role": "user", "content": f"{instruction}\n\n{message}"}]
    return [{"role": "system", "content": instruction}, {"role": "user", "content": message}]


def prompts_of_a_server(prompts: PromptConfig) -> PromptConfig:
    """The prompts as an identity holds them where a chat server reads the messages: it knows a system's, and no date
    is told."""
    role = "user" if prompts.instruction_role == "user" else "system"
    return prompts.model_copy(update={"instruction_role": role, "date": None})


def prompt_ids(tokenizer: Any, prompts: PromptConfig, kind: PromptKind, row: Mapping[str, Any]) -> list[int]:
    """Token ids of one prompt, up to where the response begins.

    Raises:
        UserError: the tokenizer's chat template refuses the messages.
    """
    if not tokenizer.chat_template:
        instruction, message = row.get("instruction") or "", user_message(prompts, kind, row)
        text = _JINJA.from_string(prompts.plain).render(instruction=instruction, message=message)
        return list(tokenizer(text)["input_ids"])
    messages = chat_messages(prompts, kind, row)
    try:
        return list(render_chat(tokenizer, prompts, messages, return_dict=False))
    except jinja2.TemplateError as error:
        advice = "" if prompts.instruction_role == "user" else " If it knows no system role, set instruction_role=user."
        raise UserError(
            f"prompts: the tokenizer's chat template refused a prompt of context '{kind}': {error}.{advice}"
        ) from error


def render_chat(
    tokenizer: Any, prompts: PromptConfig, messages: list[dict[str, str]], *, ended: bool = False, **options: Any
) -> Any:
    """What the tokenizer's chat template makes of messages: up to where a response begins, or `ended` after the last.

    Raises:
        jinja2.TemplateError: the template refuses them.
    """
    if prompts.date is not None:
        options["chat_template"] = _with_date(tokenizer.get_chat_template(), prompts.date)
    return tokenizer.apply_chat_template(
        messages, add_generation_prompt=not ended, **options, **prompts.chat_template_arguments
    )


def asks_for_date(tokenizer: Any) -> bool:
    """Whether the tokenizer's chat template writes the day's date."""
    return bool(tokenizer.chat_template) and _CLOCK in tokenizer.get_chat_template()


def _with_date(chat_template: str, date: datetime.date) -> str:
    """The template with a macro in place of the function that looks at the clock: transformers takes no other."""
    if _CLOCK not in chat_template:
        return chat_template
    values = {f"%{directive}": date.strftime(f"%{directive}") for directive in _DIRECTIVES}
    replaced = "".join(f" | replace({directive!r}, {value!r})" for directive, value in values.items())
    return f"{{%- macro {_CLOCK}(format) -%}}{{{{ format{replaced} }}}}{{%- endmacro -%}}{chat_template}"


def prompts_fingerprint(tokenizer: Any, prompts: PromptConfig) -> str:
    """Short hash of what shapes a prompt: the templates and the tokenizer's chat template, but not the date."""
    undated = prompts.model_copy(update={"date": None})
    shape = {"prompts": undated.identity(), "chat_template": tokenizer.chat_template}
    return hashlib.sha256(json.dumps(shape, sort_keys=True).encode()).hexdigest()[:16]
