"""The prompts a response is scored under (`base`, `judge`, `standard`) and the one that asks for a judgment.

A prompt is rendered in two steps: a Jinja template of `PromptConfig` makes the user's message, and the tokenizer's
chat template (or, where it has none, `PromptConfig.plain`) wraps it. The response is never part of the rendering:
it is joined as token ids, so that it is the same ids under every context.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Literal

import jinja2.sandbox

from nlft_ray.config import PromptConfig
from nlft_ray.errors import UserError

PromptKind = Literal["base", "judge", "standard", "ask_judgment"]

_JINJA = jinja2.sandbox.ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)


def user_message(prompts: PromptConfig, kind: PromptKind, row: Mapping[str, Any]) -> str:
    """The user's message of one prompt. `row` holds the columns of the examples table that the template names."""
    return _JINJA.from_string(getattr(prompts, kind)).render(row)


def chat_messages(prompts: PromptConfig, kind: PromptKind, row: Mapping[str, Any]) -> list[dict[str, str]]:
    """The messages of one prompt, for a chat template or a chat server. `instruction_role` places the instruction."""
    instruction = row.get("instruction") or ""
    message = user_message(prompts, kind, row)
    if not instruction:
        return [{"role": "user", "content": message}]
    if prompts.instruction_role == "user":
        return [{"role": "user", "content": f"{instruction}\n\n{message}"}]
    return [{"role": "system", "content": instruction}, {"role": "user", "content": message}]


def prompt_ids(tokenizer: Any, prompts: PromptConfig, kind: PromptKind, row: Mapping[str, Any]) -> list[int]:
    """Token ids of one prompt, up to where the response begins.

    Raises:
        UserError: the tokenizer's chat template refuses the messages (often: it knows no system role).
    """
    if not tokenizer.chat_template:
        instruction, message = row.get("instruction") or "", user_message(prompts, kind, row)
        text = _JINJA.from_string(prompts.plain).render(instruction=instruction, message=message)
        return list(tokenizer(text)["input_ids"])
    messages = chat_messages(prompts, kind, row)
    try:
        return list(
            tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, return_dict=False, **prompts.chat_template_arguments
            )
        )
    except jinja2.TemplateError as error:
        raise UserError(
            f"the tokenizer's chat template refused a prompt of context '{kind}': {error}. "
            "If it knows no system role, set prompts.instruction_role=user."
        ) from error


def prompts_fingerprint(tokenizer: Any, prompts: PromptConfig) -> str:
    """Short hash of everything that shapes a prompt: the templates and the tokenizer's chat template."""
    shape = {"prompts": prompts.model_dump(by_alias=True), "chat_template": tokenizer.chat_template}
    return hashlib.sha256(json.dumps(shape, sort_keys=True).encode()).hexdigest()[:16]
