"""Configurations from a file and `key=value` words, validated, with every mistake reported at once."""

import copy
import difflib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click
import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from nlft_ray.errors import UserError

Config = TypeVar("Config", bound=BaseModel)


def load_config(kind: type[Config], file: str | None, words: Sequence[str]) -> Config:
    """Read a YAML file, lay the words `a.b=1` or `--a.b 1` over it, and validate.

    Raises:
        UserError: lists every unknown key, wrong type and impossible combination.
    """
    try:
        settings = OmegaConf.merge(_read_file(file), *(_read_word(word) for word in _as_dotlist(words)))
        values = OmegaConf.to_container(settings, resolve=True)
    except (OmegaConfBaseException, yaml.YAMLError) as error:
        raise UserError(f"configuration: {error}") from error
    return validate(kind, values)


def validate(kind: type[Config], values: Any) -> Config:
    """Validate plain values.

    Raises:
        UserError: as in `load_config`.
    """
    mistakes: dict[str, str] = {}
    remaining = copy.deepcopy(values)
    while True:
        try:
            valid = kind.model_validate(remaining)
        except ValidationError as error:
            new = {_where(detail): _describe(kind, detail) for detail in error.errors()}
            # Some checks run only when nothing else is wrong: look again without the values that are.
            pruned = [_prune(remaining, detail["loc"]) for detail in error.errors()]
            mistakes = new | mistakes
            if any(pruned):
                continue
        if mistakes:
            raise UserError("configuration:\n" + "\n".join(f"  {line}" for line in mistakes.values()))
        return valid


def _where(detail: ErrorDetails) -> str:
    return ".".join(str(part) for part in detail["loc"])


def _prune(values: Any, loc: Sequence[str | int]) -> bool:
    """Delete what an error points at; False where there is nothing to delete (a missing key, a whole model)."""
    for part in loc[:-1]:
        is_there = part in values if isinstance(values, dict) else isinstance(values, list)
        if is_there:
            values = values[part]
        # else: the tag of a union's member, which stands in the path but not in the values
    if isinstance(values, dict) and loc and loc[-1] in values:
        del values[loc[-1]]
        return True
    return False


def to_yaml(config: BaseModel) -> str:
    """The resolved configuration as YAML that `load_config` reads back to the same."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def write_help(kind: type[BaseModel], formatter: click.HelpFormatter) -> None:
    """Write every setting with its default and its meaning, which is its field's docstring."""
    for title, rows in _help_sections(kind, ""):
        with formatter.section(title):
            formatter.write_dl(rows, col_max=40)


def all_settings(kind: type[BaseModel]) -> dict[str, str]:
    """Every setting that holds a value, such as `train.lora.rank`, with its meaning."""
    rows = [row for _, section in _help_sections(kind, "") for row in section]
    names = {name for name, _ in rows}
    return {name: text for name, text in rows if not any(other.startswith(f"{name}.") for other in names)}


def _help_sections(kind: Any, prefix: str) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """(heading, [(key, help)]) of a model, then of the models nested in it."""
    fields = TypeAdapter(kind).json_schema()
    definitions = fields.get("$defs", {})
    yield from _schema_sections(fields, definitions, prefix, "Settings")


def _schema_sections(
    node: dict[str, Any], definitions: dict[str, Any], prefix: str, title: str
) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    rows, nested = [], []
    for key, field in node.get("properties", {}).items():
        models = [branch for branch in _alternatives(field, definitions) if "properties" in branch]
        for model in models:
            name = model["properties"].get("name", {}).get("const")
            heading = f"{prefix}{key} ({name})" if name else f"{prefix}{key}"
            nested.append((model, f"{prefix}{key}.", heading))
        rows.append((f"{prefix}{key}", _help_text(key, field, node, models)))
    yield title, rows
    for model, inner, heading in nested:
        yield from _schema_sections(model, definitions, inner, heading)


def _help_text(key: str, field: dict[str, Any], node: dict[str, Any], models: list[dict[str, Any]]) -> str:
    text = " ".join((field.get("description") or next(iter(models), {}).get("description", "")).split())
    if key in node.get("required", []):
        return f"{text} [required]"
    default = field.get("default")
    if models or default in (None, "", {}, []):
        return text
    return f"{text} [{json.dumps(default, ensure_ascii=False)}]"


def _read_file(file: str | None) -> Any:
    if file is None:
        return OmegaConf.create({})
    if "://" in file:
        from nlft_ray.storage.folder import Folder  # slow to load, and a file of this machine does without

        at = Folder(file)
        if not at.is_file():
            raise UserError(f"--config: no file {file}")
        settings = OmegaConf.create(at.parent.read_text(at.name))
    else:
        path = Path(file).expanduser()
        if not path.is_file():
            raise UserError(f"--config: no file {file}")
        settings = OmegaConf.load(path)
    if not OmegaConf.is_dict(settings):
        raise UserError(f"--config: {file} must hold keys and values")
    return settings


def _read_word(word: str) -> Any:
    """One setting; a value that begins as a Jinja template is text, although its brackets are YAML's too."""
    key, _, value = word.partition("=")
    if value.startswith(("{{", "{%")):
        word = f"{key}={json.dumps(value)}"
    try:
        return OmegaConf.from_dotlist([word])
    except (OmegaConfBaseException, yaml.YAMLError) as error:
        problem = str(error).strip().splitlines()[0]
        raise UserError(f"'{word}': the value is not YAML ({problem}); put it in quotes within the word.") from error


def _as_dotlist(words: Iterable[str]) -> list[str]:
    """`--a.b 1`, `--a.b=1` and `a.b=1` are the same; a dash in a key is an underscore."""
    dotlist: list[str] = []
    pending: str | None = None
    for word in words:
        if pending is not None:
            dotlist.append(f"{pending}={word}")
            pending = None
        elif word.startswith("--"):
            key, equals, value = word[2:].partition("=")
            key = key.replace("-", "_")
            if equals:
                dotlist.append(f"{key}={value}")
            else:
                pending = key
        elif "=" in word:
            dotlist.append(word)
        else:
            raise UserError(f"'{word}' is neither key=value nor --key value")
    if pending is not None:
        raise UserError(f"--{pending} needs a value")
    return dotlist


def _describe(kind: type[BaseModel], detail: ErrorDetails) -> str:
    """One mistake: where, what, and the nearest valid name."""
    where = _where(detail)
    if detail["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        keys = _keys_at(kind, detail["loc"][:-1])
        near = difflib.get_close_matches(str(detail["loc"][-1]), keys, n=1, cutoff=0.5)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        return f"{where}: unknown key.{hint} Known here: {', '.join(sorted(keys))}."
    if detail["type"] == "missing":
        return f"{where}: required."
    message = detail["msg"].removeprefix("Value error, ")
    value = detail["input"]
    is_plain = isinstance(value, str | int | float | bool) or value is None
    got = f" (got {value!r})" if is_plain and detail["type"] != "secret" else ""
    return f"{where}: {message}{got}." if where else f"{message}."


def _keys_at(kind: type[BaseModel], path: Sequence[str | int]) -> list[str]:
    """Keys allowed at a path, read from the JSON schema, which sees through unions and dataclasses."""
    schema = TypeAdapter(kind).json_schema()
    definitions = schema.get("$defs", {})
    nodes = [schema]
    for part in path:
        nodes = [inner for node in nodes for inner in _step(node, part, definitions)]
    return sorted({key for node in nodes for key in _resolve_one(node, definitions).get("properties", {})})


def _resolve_one(node: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in node:
        node = definitions[node["$ref"].rpartition("/")[2]]
    return node


def _alternatives(node: dict[str, Any], definitions: dict[str, Any]) -> list[dict[str, Any]]:
    node = _resolve_one(node, definitions)
    branches = [*node.get("anyOf", []), *node.get("oneOf", []), *node.get("allOf", [])]
    return [one for branch in branches for one in _alternatives(branch, definitions)] or [node]


def _step(node: dict[str, Any], part: str | int, definitions: dict[str, Any]) -> list[dict[str, Any]]:
    inner: list[dict[str, Any]] = []
    for branch in _alternatives(node, definitions):
        if isinstance(part, int):
            target = branch.get("items")
        else:
            target = branch.get("properties", {}).get(part)
            if target is None and part in _tags(branch):
                target = branch  # a tagged union names its member in the path of the error
        if target is not None:
            inner += _alternatives(target, definitions)
    return inner


def _tags(branch: dict[str, Any]) -> list[str]:
    name = branch.get("properties", {}).get("name", {})
    return [name["const"]] if "const" in name else []
