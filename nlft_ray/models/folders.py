"""Where a model's files lie on this machine: in a folder, in a copy of one in a store, or in the hub's cache.

What is not there, or not whole, is said in one line. An adapter's folder (PEFT) is a model too: it names its base.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from nlft_ray import sandbox
from nlft_ray.config import ModelConfig
from nlft_ray.errors import UserError
from nlft_ray.models.copies import local_copy
from nlft_ray.storage.folder import Folder

WEIGHTS = "*.safetensors"
ADAPTER, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_FILE_PATTERNS = [WEIGHTS, "*.json", "*.jinja", "*.model", "*.txt", "*.py", "README.md"]
_TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")
_INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class Adapter:
    """Low-rank adapters in a folder of their own, and the model that they belong to."""

    folder: Path
    base: ModelConfig


def model_folder(config: ModelConfig, *, weights: bool = True) -> Path:
    """The model's folder on this machine, an adapter's base for an adapter.

    A hub name is downloaded into the hub's cache first, a URI beside it. Without `weights`, both come without them, for
    those who only need the configuration.

    Raises:
        UserError: there is no such model, or its weights are not all there, or pickled.
    """
    adapter = adapter_of(config, weights=weights)
    if adapter is not None:
        return _base_folder(config, adapter, weights=weights)
    folder = _local(config, weights=weights)
    if not (folder / "config.json").is_file():
        raise UserError(_without_configuration(config, folder))
    if weights:
        _check_weights(config, folder)
    return folder


def tokenizer_folder(config: ModelConfig) -> Path:
    """The folder of the model's tokenizer, which comes without weights; an adapter without one has its base's.

    Raises:
        UserError: as `model_folder`; or there is no tokenizer.
    """
    folder = _local(config, weights=False)
    if not any((folder / name).is_file() for name in _TOKENIZERS):
        model_folder(config, weights=False)  # if it is no model at all, that is said
        adapter = adapter_of(config, weights=False)
        if adapter is not None:
            return tokenizer_folder(adapter.base)
        raise UserError(f"model.path: {config.path} has no tokenizer; save the model's tokenizer into the same folder.")
    return folder


def adapter_of(config: ModelConfig, *, weights: bool = True) -> Adapter | None:
    """The adapter that `config` names, or None where it names a whole model.

    Raises:
        UserError: there is no such folder; it names no base; or its weights are missing or pickled.
    """
    folder = _local(config, weights=weights)
    if not (folder / ADAPTER).is_file():
        return None
    settings = read_json(folder / ADAPTER)
    base = settings.get("base_model_name_or_path")
    if not base:
        raise UserError(f"model.path: {ADAPTER} in {config.path} names no base_model_name_or_path; write it there.")
    if weights and not (folder / ADAPTER_WEIGHTS).is_file():
        raise UserError(f"model.path: the adapter {config.path} has no {ADAPTER_WEIGHTS}; save it as safetensors.")
    named = {"path": base, "revision": settings.get("revision"), "commit": None}
    return Adapter(folder, ModelConfig.model_validate(dict(config) | named))


def base_of(config: ModelConfig) -> ModelConfig:
    """The whole model under an adapter, or under one on another; the model itself where it is none."""
    adapter = adapter_of(config, weights=False)
    return config if adapter is None else base_of(adapter.base)


def with_commit(config: ModelConfig, recorded: Mapping[str, Any] | None) -> ModelConfig:
    """A model of the hub with the commit that its revision is now: it is looked up once, for all who load the model.

    Args:
        recorded: The model in the plan of an output that was begun, which goes on with its commit.

    Raises:
        UserError: as `model_folder`.
    """
    if config.commit or not _is_on_hub(config):
        return config
    if recorded and (recorded.get("path"), recorded.get("revision")) == (config.path, config.revision):
        return config.model_copy(update={"commit": recorded.get("commit")})  # a plan of before has none
    return config.model_copy(update={"commit": _download(config, weights=False).name})


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file of a model.

    Raises:
        UserError: it is damaged.
    """
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise UserError(f"model.path: {path} is damaged: {error}. Bring the model again.") from error


def _local(config: ModelConfig, *, weights: bool) -> Path:
    if config.path == "sandbox":
        return sandbox.MODEL_FOLDER
    if "://" in config.path:
        return local_copy(Folder(config.path), _patterns(weights=weights))
    path = Path(config.path).expanduser()
    if path.is_dir():
        return path
    if path.is_file():
        what = "a GGUF file" if path.suffix == ".gguf" else "a file"
        raise UserError(f"model.path: {config.path} is {what}. {_WANTED}")
    if not _is_on_hub(config):
        raise UserError(f"model.path: no folder {config.path}.")
    return _download(config, weights=weights)


_WANTED = "Name the folder of a Hugging Face model: config.json, a tokenizer, and weights as safetensors."


def _patterns(*, weights: bool) -> list[str]:
    return [name for name in _FILE_PATTERNS if weights or name != WEIGHTS]


def _is_on_hub(config: ModelConfig) -> bool:
    """Whether the path can only be a name on the hub."""
    path = config.path
    looks_local = path.startswith((".", "/", "~")) or path.count("/") != 1 or Path(path).exists()
    return path != "sandbox" and "://" not in path and not looks_local


def _download(config: ModelConfig, *, weights: bool) -> Path:
    try:
        return Path(
            snapshot_download(
                config.path,
                revision=config.commit or config.revision,
                allow_patterns=_patterns(weights=weights),
                ignore_patterns=["consolidated*"],  # the same weights once more
            )
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(f"model.path: {_why_not(config, error)}") from error


def _why_not(config: ModelConfig, error: Exception) -> str:
    """One line about a download that failed, with what to do."""
    name, page = config.path, f"{constants.ENDPOINT}/{config.path}"
    if isinstance(error, LocalEntryNotFoundError) and isinstance(error.__cause__, HfHubHTTPError):
        error = error.__cause__  # the hub was reached, and refused
    if isinstance(error, GatedRepoError):
        return f"{name} is gated: ask for access at {page}, and set HF_TOKEN wherever the stage and its workers run."
    if isinstance(error, RepositoryNotFoundError):
        return (
            f"{name} is neither a folder nor a model on the hub that may be read: correct the name; a private model "
            "needs HF_TOKEN, wherever the stage and its workers run."
        )
    if isinstance(error, RevisionNotFoundError):
        return f"{name} has no branch, tag or commit {config.commit or config.revision}: correct model.revision."
    reason = str(error).strip().splitlines()[0]
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    if status in (401, 403):
        return f"the hub refuses {name} ({status}): HF_TOKEN has no right to read it. See {page}."
    if status is not None:
        return f"the hub failed over {name}: {reason} Run the same command again later."
    if isinstance(error, LocalEntryNotFoundError):
        return (
            f"{name} is neither a folder nor a model on the hub that can be had: it is not in this machine's cache, "
            f"and there is no way to {constants.ENDPOINT}. Bring its folder here and name that, or mend the network."
        )
    return f"{name} is neither a folder nor a model on the hub: {reason}"


def _without_configuration(config: ModelConfig, folder: Path) -> str:
    what = "only GGUF files" if any(folder.glob("*.gguf")) else "no config.json, so it is not a Hugging Face model"
    return f"model.path: {config.path} has {what}. {_WANTED}"


def _check_weights(config: ModelConfig, folder: Path) -> None:
    """Raise a UserError if weights are missing; whether they are damaged shows when they are loaded."""
    if not list(folder.glob(WEIGHTS)):
        what = "no weights"
        if any(file for pattern in ("*.bin", "*.pt", "*.pth") for file in folder.glob(pattern)):
            what = "only pickled weights, which can run code when loaded"
        if any(folder.glob("*.gguf")):
            what = "only GGUF weights"
        raise UserError(f"model.path: {config.path} has {what}; save it with save_pretrained (safetensors).")
    if (folder / _INDEX).is_file():
        named = set(read_json(folder / _INDEX).get("weight_map", {}).values())
        missing = sorted(name for name in named if not (folder / name).is_file())
        if missing:
            raise UserError(
                f"model.path: {config.path} lacks {missing[0]} (of {len(named)} files of its weights, {len(missing)} "
                "are missing): bring the model again."
            )


def _base_folder(config: ModelConfig, adapter: Adapter, *, weights: bool) -> Path:
    try:
        return model_folder(adapter.base, weights=weights)
    except UserError as error:
        raise UserError(
            f"{error} It is the base of the adapter {config.path}; if it has moved, correct base_model_name_or_path in "
            f"its {ADAPTER}."
        ) from error
