"""How a model takes turns: the token that ends one, whose words the instruction is, and whether it is told the date."""

import datetime
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import jinja2

from nlft_ray.config import ModelConfig, PromptConfig
from nlft_ray.errors import UserError
from nlft_ray.models.folders import model_folder, read_json
from nlft_ray.models.prompts import asks_for_date, render_chat

_INSTRUCTION, _MESSAGE, _WORDS = "probeinstruction", "probemessage", "probewords"
_USER = {"role": "user", "content": _MESSAGE}


@dataclass(frozen=True)
class EndOfTurn:
    """The token that ends a response, and who says so."""

    id: int
    token: str
    source: str


@dataclass(frozen=True)
class Turns:
    """What a stage settles about turns before it begins, so that all its workers, today's and later ones, agree."""

    end: EndOfTurn
    ends_as_before: bool
    """Whether that is the tokenizer's end-of-sequence token, which identities have never named."""
    instruction_role: Literal["system", "user"]
    told_date: bool
    """Whether the chat template writes the day's date."""
    role_was_found: bool
    """Whether nothing but the chat template says where the instruction goes."""

    def automatic(self) -> dict[str, Callable[[], str]]:
        """How each setting is chosen that is not in the model's files: the date, where one is told."""
        return {"prompts.date": lambda: today().isoformat()} if self.told_date else {}

    def notes(self, prompts: Mapping[str, Any]) -> dict[str, str]:
        """What was found, for people (see `Manifest.notes`); `prompts` are those of the settled identity."""
        notes = {"end_of_turn": f"{self.end.token} ({self.end.source})"}
        if self.role_was_found and self.instruction_role == "user":
            notes["instruction"] = "ahead of the user's message (the chat template has no place for a system message)"
        if date := prompts.get("date"):
            notes["date"] = f"{date} (the chat template writes one)"
        return notes

    def identified(self, config: Any) -> Any:
        """A stage's configuration as its identity holds it: with the date only where one is told, and the end of a turn
        only where it is set, or another than the tokenizer's own."""
        end = config.model.end_of_turn_token if self.ends_as_before else self.end.token
        date = config.prompts.date if self.told_date else None
        return self._changed(config, end, date)

    def settled(self, config: Any) -> Any:
        """A stage's configuration for its workers."""
        return self._changed(config, self.end.token, config.prompts.date)

    def _changed(self, config: Any, end: str | None, date: datetime.date | None) -> Any:
        prompts = config.prompts.model_copy(update={"instruction_role": self.instruction_role, "date": date})
        model = config.model.model_copy(update={"end_of_turn_token": end})
        return config.model_copy(update={"prompts": prompts, "model": model})


def today() -> datetime.date:
    """The date of this machine's clock."""
    return datetime.date.today()


def read_turns(tokenizer: Any, model: ModelConfig, prompts: PromptConfig) -> Turns:
    """What settings, chat template, generation configuration and tokenizer say, in this order.

    Raises:
        UserError: no token ends a response, or the chat template refuses a user's message.
    """
    end = end_of_turn(tokenizer, model, prompts)
    if tokenizer.chat_template:
        try:
            render_chat(tokenizer, prompts, [_USER], tokenize=False)
        except jinja2.TemplateError as error:
            raise UserError(
                f"model.path: the chat template of {model.path} refuses a user's message: {error}. "
                "Arguments that it wants go into prompts.chat_template_arguments."
            ) from error
    return Turns(
        end=end,
        ends_as_before=end.id == tokenizer.eos_token_id,
        instruction_role=instruction_role(tokenizer, prompts),
        told_date=asks_for_date(tokenizer),
        role_was_found=prompts.instruction_role == "auto",
    )


def end_of_turn(tokenizer: Any, model: ModelConfig, prompts: PromptConfig | None = None) -> EndOfTurn:
    """The token that ends a response: the setting, else what the chat template puts after an assistant's words, else
    what the generation configuration stops at, else the tokenizer's end-of-sequence token.

    Raises:
        UserError: the setting is unknown to the tokenizer, or there is none at all.
    """
    if model.end_of_turn_token is not None:
        token_id = tokenizer.get_vocab().get(model.end_of_turn_token)
        if token_id is None:
            raise UserError(f"model.end_of_turn_token: {model.end_of_turn_token!r} is not a token of {model.path}.")
        return EndOfTurn(int(token_id), model.end_of_turn_token, "as set")
    for found, source in (
        (_end_in_template(tokenizer, prompts or PromptConfig()), "by the chat template"),
        (_end_in_generation_configuration(tokenizer, model), "by the generation configuration"),
        (tokenizer.eos_token_id, "by the tokenizer"),
    ):
        if found is not None:
            return EndOfTurn(int(found), str(tokenizer.convert_ids_to_tokens(int(found))), source)
    raise UserError(
        f"model.path: nothing in {model.path} says which token ends a response: set model.end_of_turn_token."
    )


def _end_in_template(tokenizer: Any, prompts: PromptConfig) -> int | None:
    """Id of the special token that follows an assistant's words; None where something else does, or nothing."""
    if not tokenizer.chat_template:
        return None
    try:
        text = render_chat(
            tokenizer, prompts, [_USER, {"role": "assistant", "content": _WORDS}], ended=True, tokenize=False
        )
    except jinja2.TemplateError:
        return None
    _, spoken, after = text.rpartition(_WORDS)
    ids = tokenizer(after, add_special_tokens=False)["input_ids"] if spoken else []
    first = next((id for id in ids if tokenizer.decode([id]).strip()), None)
    return first if first in {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()} else None


def _end_in_generation_configuration(tokenizer: Any, model: ModelConfig) -> int | None:
    """Id of the token that generation stops at; of several the tokenizer's own, if it is one of them."""
    path = model_folder(model, weights=False) / "generation_config.json"
    ends = read_json(path).get("eos_token_id") if path.is_file() else None
    known = [end for end in (ends if isinstance(ends, list) else [ends]) if end is not None and end < len(tokenizer)]
    return tokenizer.eos_token_id if tokenizer.eos_token_id in known else next(iter(known), None)


def instruction_role(tokenizer: Any, prompts: PromptConfig) -> Literal["system", "user"]:
    """Where a row's instruction goes: as set, else a system message where the chat template writes it down."""
    if prompts.instruction_role != "auto":
        return prompts.instruction_role
    if not tokenizer.chat_template:
        return "system"  # of no matter: `PromptConfig.plain` has its own place for it
    try:
        text = render_chat(tokenizer, prompts, [{"role": "system", "content": _INSTRUCTION}, _USER], tokenize=False)
    except jinja2.TemplateError:
        return "user"
    return "system" if _INSTRUCTION in text else "user"
