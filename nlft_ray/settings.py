"""From a file and `key=value` words to a validated configuration, with every mistake reported at once."""

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

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
        merged = OmegaConf.merge(_read_file(file), OmegaConf.from_dotlist(_as_dotlist(words)))
        values = OmegaConf.to_container(merged, resolve=True)
    except (OmegaConfBaseException, yaml.YAMLError) as error:
        raise UserError(f"configuration: {error}") from error
    return validate(kind, values)


def validate(kind: type[Config], values: Any) -> Config:
    """Validate plain values.

    Raises:
        UserError: as `load_config`.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        lines = [_describe(kind, detail) for detail in error.errors()]
        raise UserError("configuration:\n" + "\n".join(f"  {line}" for line in lines)) from error


def _read_file(file: str | None) -> Any:
    if file is None:
        return OmegaConf.create({})
    path = Path(file).expanduser()
    if not path.is_file():
        raise UserError(f"--config: no file {file}")
    loaded = OmegaConf.load(path)
    if not OmegaConf.is_dict(loaded):
        raise UserError(f"--config: {file} must hold keys and values")
    return loaded


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
    where = ".".join(str(part) for part in detail["loc"])
    if detail["type"] == "extra_forbidden":
        known = _known_keys(kind, detail["loc"][:-1])
        near = difflib.get_close_matches(str(detail["loc"][-1]), known, n=1, cutoff=0.5)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        return f"{where}: unknown key.{hint} Known here: {', '.join(sorted(known))}."
    if detail["type"] == "missing":
        return f"{where}: required."
    message = detail["msg"].removeprefix("Value error, ")
    given = detail["input"]
    shown = f" (got {given!r})" if isinstance(given, str | int | float | bool) or given is None else ""
    return f"{where}: {message}{shown}." if where else f"{message}."


def _known_keys(kind: type[BaseModel], path: Sequence[str | int]) -> list[str]:
    """Keys allowed at a path, read from the JSON schema, which sees through unions and dataclasses."""
    schema = TypeAdapter(kind).json_schema()
    definitions = schema.get("$defs", {})
    nodes = [schema]
    for part in path:
        nodes = [found for node in nodes for found in _step(node, part, definitions)]
    return sorted({key for node in nodes for key in _resolve_one(node, definitions).get("properties", {})})


def _resolve_one(node: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in node:
        node = definitions[node["$ref"].rpartition("/")[2]]
    return node


def _alternatives(node: dict[str, Any], definitions: dict[str, Any]) -> list[dict[str, Any]]:
    node = _resolve_one(node, definitions)
    branches = [*node.get("anyOf", []), *node.get("oneOf", []), *node.get("allOf", [])]
    return [found for branch in branches for found in _alternatives(branch, definitions)] or [node]


def _step(node: dict[str, Any], part: str | int, definitions: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for branch in _alternatives(node, definitions):
        if isinstance(part, int):
            target = branch.get("items")
        else:
            target = branch.get("properties", {}).get(part)
            if target is None and part in _tags(branch):
                target = branch  # a tagged union names its member in the path of the error
        if target is not None:
            found += _alternatives(target, definitions)
    return found


def _tags(branch: dict[str, Any]) -> list[str]:
    name = branch.get("properties", {}).get("name", {})
    return [name["const"]] if "const" in name else []
