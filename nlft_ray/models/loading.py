"""Causal language models and their tokenizers, of any architecture that transformers knows: loaded, fingerprinted."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers  # by its name: it loads each part of itself only when that is used
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from nlft_ray import sandbox
from nlft_ray.config import ModelConfig
from nlft_ray.config.shared import automatic_dtype
from nlft_ray.errors import UserError
from nlft_ray.models.copies import local_copy
from nlft_ray.storage.folder import Folder, map_concurrently

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

_WEIGHTS = "*.safetensors"
_FILE_PATTERNS = [_WEIGHTS, "*.json", "*.jinja", "*.model", "*.txt", "*.py", "README.md"]
_SAMPLED_BLOCKS, _BLOCK_BYTES = 64, 65_536


def device() -> torch.device:
    """The device of this process: the first GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def dtype_of(config: ModelConfig) -> torch.dtype:
    """Type of the weights; `auto`, which no stage leaves to its workers, goes by this process's device."""
    name = automatic_dtype(on_gpu=torch.cuda.is_available()) if config.dtype == "auto" else config.dtype
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]


def model_folder(config: ModelConfig, *, weights: bool = True) -> Path:
    """The model's folder on this machine; a hub name is downloaded into the hub's cache first, a URI beside it.

    Without `weights`, a folder of a store is copied without them, for those who only need the tokenizer.

    Raises:
        UserError: there is no such model, it has no tokenizer, or its weights are pickled.
    """
    if config.path == "sandbox":
        return sandbox.MODEL_FOLDER
    if "://" in config.path:
        folder = local_copy(Folder(config.path), [name for name in _FILE_PATTERNS if weights or name != _WEIGHTS])
    else:
        folder = Path(config.path).expanduser()
        if not folder.is_dir():
            folder = _download(config)
    if not (folder / "config.json").is_file():
        raise UserError(f"model.path: {config.path} has no config.json, so it is not a Hugging Face model folder.")
    if weights and not list(folder.glob(_WEIGHTS)):
        pickled = any(folder.glob("*.bin")) or any(folder.glob("*.pt")) or any(folder.glob("*.pth"))
        what = "only pickled weights, which can run code when loaded" if pickled else "no weights"
        raise UserError(f"model.path: {config.path} has {what}; save it with save_pretrained (safetensors).")
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")):
        raise UserError(f"model.path: {config.path} has no tokenizer; save the model's tokenizer into the same folder.")
    return folder


def _download(config: ModelConfig) -> Path:
    looks_local = config.path.startswith((".", "/", "~")) or config.path.count("/") != 1
    if looks_local:
        raise UserError(f"model.path: no folder {config.path}.")
    try:
        return Path(snapshot_download(config.path, revision=config.revision, allow_patterns=_FILE_PATTERNS))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"model.path: {config.path} is neither a folder nor a model on the hub: {reason}") from error


def load_tokenizer(config: ModelConfig) -> Any:
    """The model's tokenizer.

    Raises:
        UserError: it cannot be loaded.
    """
    folder = model_folder(config, weights=False)
    try:
        return transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=config.trust_remote_code)
    except (OSError, ValueError) as error:
        raise UserError(f"model.path: the tokenizer in {config.path} does not load: {error}") from error


def load_model(config: ModelConfig, on: torch.device | None = None, *, spread: bool = False) -> "PreTrainedModel":
    """The model, in evaluation mode, on `on` (default: this process's device).

    With `spread`, its layers go to all GPUs that this process sees, where there are several.

    Raises:
        UserError: transformers cannot load it, or not with this quantisation.
    """
    folder = model_folder(config)
    spread = spread and torch.cuda.device_count() > 1
    quantisation = checkpoint_quantisation(config)
    placed = spread or config.quantization is not None or quantisation is not None  # by transformers, as it loads
    device_map: Any = "auto" if spread else {"": on or device()} if placed else None
    try:
        model = auto_class(_settings(config, folder)).from_pretrained(
            folder,
            dtype=dtype_of(config),
            attn_implementation=None if config.attention == "auto" else config.attention,
            use_safetensors=True,
            trust_remote_code=config.trust_remote_code,
            device_map=device_map,
            **_quantization(config),
        )
    except (OSError, ValueError, ImportError) as error:
        quantised = f" (its weights are quantised: {quantisation})" if quantisation else ""
        raise UserError(f"model.path: {config.path}{quantised} does not load: {error}") from error
    return model.eval() if placed else model.eval().to(on or device())


def supported_attention(config: ModelConfig) -> str:
    """The attention that transformers gives a model that names none: `sdpa` where its family has it, else `eager`.

    Raises:
        UserError: transformers does not know it.
    """
    settings = _settings(config, model_folder(config, weights=False))
    try:
        with torch.device("meta"):
            model = auto_class(settings).from_config(settings, trust_remote_code=config.trust_remote_code)
    except (OSError, ValueError, ImportError) as error:
        raise UserError(f"model.path: {config.path} does not load: {error}") from error
    return str(model.config._attn_implementation)


def auto_class(settings: "PreTrainedConfig") -> Any:
    """The class of transformers that loads a model: as a language model, or as the wrapper around one that it is."""
    is_wrapper = type(settings) in transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    if is_wrapper and type(settings) not in transformers.MODEL_FOR_CAUSAL_LM_MAPPING:
        return transformers.AutoModelForImageTextToText
    return transformers.AutoModelForCausalLM


def _settings(config: ModelConfig, folder: Path) -> "PreTrainedConfig":
    try:
        return transformers.AutoConfig.from_pretrained(folder, trust_remote_code=config.trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"model.path: the config.json of {config.path} is of no model that transformers knows: {error}"
        ) from error


def checkpoint_quantisation(config: ModelConfig) -> str | None:
    """The method that a model's weights are quantised by as they lie in its folder; None where they are whole."""
    path = model_folder(config, weights=False) / "config.json"
    settings = json.loads(path.read_text(encoding="utf-8")).get("quantization_config")
    return str(settings.get("quant_method", "by an unnamed method")) if settings else None


def _quantization(config: ModelConfig) -> dict[str, Any]:
    """Empty where nothing is asked for: told None, transformers would take quantised weights for whole ones."""
    if config.quantization is None:
        return {}
    from transformers.quantizers.auto import AutoQuantizationConfig

    try:
        return {"quantization_config": AutoQuantizationConfig.from_dict(dict(config.quantization))}
    except (ValueError, TypeError, ImportError) as error:
        raise UserError(f"model.quantization: {' '.join(str(error).split())}") from error


def max_length(config: ModelConfig) -> int:
    """Largest number of tokens of prompt and response together: the setting, else the model's own limit."""
    folder = model_folder(config, weights=False)
    settings = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=config.trust_remote_code)
    own = getattr(settings.get_text_config(), "max_position_embeddings", None)
    if config.max_length and own and config.max_length > own:
        raise UserError(f"model.max_length: {config.max_length} is above the {own} positions that {config.path} has.")
    return config.max_length or own or 1_000_000


def model_fingerprint(config: ModelConfig) -> str:
    """Short hash of configuration and weights, in a second: 64 blocks, spread evenly, stand for a large file."""
    folder = Folder(config.path if "://" in config.path else str(model_folder(config)))
    if not folder.has("config.json"):
        raise UserError(f"model.path: {config.path} has no config.json, so it is not a Hugging Face model folder.")
    names = ["config.json", *folder.files(_WEIGHTS.removeprefix("*"))]
    digest = hashlib.sha256()
    for blocks in map_concurrently(lambda name: list(_sampled_blocks(folder, name)), names):
        for block in blocks:
            digest.update(block)
    return digest.hexdigest()[:16]


def _sampled_blocks(folder: Folder, name: str) -> Iterator[bytes]:
    """A file's name and size, and blocks spread evenly over it: all that is fetched of a large file in a store."""
    size = folder.size(name)
    yield f"{name}:{size}".encode()
    yield from folder.read_blocks(name, range(0, size, max(size // _SAMPLED_BLOCKS, _BLOCK_BYTES)), _BLOCK_BYTES)


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Short hash of what determines ids: the vocabulary, and how text is split."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    shape = backend.to_str() if backend is not None else repr(sorted(tokenizer.get_vocab().items()))
    return hashlib.sha256(shape.encode()).hexdigest()[:16]
