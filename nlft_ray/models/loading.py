"""Causal language models and their tokenizers, of any architecture that transformers knows: loaded, fingerprinted."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers  # by its name: it loads each part of itself only when that is used
from safetensors import SafetensorError
from transformers.integrations import is_deepspeed_zero3_enabled

from nlft_ray.config import ModelConfig
from nlft_ray.config.shared import automatic_dtype
from nlft_ray.errors import UserError
from nlft_ray.models.adapters import merged, with_trained_adapters
from nlft_ray.models.folders import (
    ADAPTER,
    WEIGHTS,
    Adapter,
    adapter_of,
    model_folder,
    read_json,
    tokenizer_folder,
)
from nlft_ray.models.sharding import check_head, sharding
from nlft_ray.storage.folder import Folder, map_concurrently

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

_SAMPLED_BLOCKS, _BLOCK_BYTES = 64, 65_536


def device() -> torch.device:
    """The device of this process: the first GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def dtype_of(config: ModelConfig) -> torch.dtype:
    """Type of the weights; `auto`, which no stage leaves to its workers, goes by this process's device."""
    name = automatic_dtype(on_gpu=torch.cuda.is_available()) if config.dtype == "auto" else config.dtype
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]


def load_tokenizer(config: ModelConfig) -> Any:
    """The model's tokenizer.

    Raises:
        UserError: it cannot be loaded.
    """
    folder = tokenizer_folder(config)
    try:
        return transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=config.trust_remote_code)
    except (OSError, ValueError) as error:
        raise UserError(f"model.path: the tokenizer in {config.path} does not load: {_one_line(error)}") from error


def load_model(
    config: ModelConfig, on: torch.device | None = None, *, spread: bool = False, tensor_parallel: int = 1
) -> "PreTrainedModel":
    """The model, in evaluation mode, on `on` (default: this process's device).

    With `spread`, its layers go to all GPUs that this process sees, where there are several. Of so many processes that
    are `tensor_parallel`, each has its part of every layer (see `sharding`).

    Raises:
        UserError: transformers cannot load it, or not with this quantisation, or not in parts.
    """
    folder, adapter = model_folder(config), adapter_of(config)
    if adapter is not None:
        if tensor_parallel > 1:
            raise UserError(
                f"pool.tensor_parallel={tensor_parallel}: {config.path} is an adapter beside its model: export it with "
                "merge=true, and name the folder that this writes."
            )
        return _with_its_adapter(load_model(adapter.base, on, spread=spread), adapter)
    spread = spread and tensor_parallel == 1 and torch.cuda.device_count() > 1
    where = on or device()
    # Placed by transformers as it loads, file by file: host memory need not hold the whole model. ZeRO-3 places it too.
    placed = spread or is_quantised(config) or (where.type != "cpu" and not is_deepspeed_zero3_enabled())
    settings = _settings(config, folder)
    parts = sharding(config, settings, tensor_parallel)
    device_map: Any = None if parts else "auto" if spread else {"": where} if placed else None
    model = _from_pretrained(config, folder, settings, device_map=device_map, **parts)
    if spread:
        _check_no_spill(model, config)
    if parts:
        check_head(model, config)
    return model if placed or parts else model.to(where)


def _from_pretrained(config: ModelConfig, folder: Path, settings: "PreTrainedConfig", **placement: Any) -> Any:
    try:
        model, found = auto_class(settings).from_pretrained(
            folder,
            output_loading_info=True,
            dtype=dtype_of(config),
            attn_implementation=None if config.attention == "auto" else config.attention,
            use_safetensors=True,
            trust_remote_code=config.trust_remote_code,
            **placement,
            **_quantization(config),
        )
    except SafetensorError as error:
        raise UserError(
            f"model.path: a file of weights in {config.path} is damaged, or was not copied to its end ({error}): "
            "bring the model again."
        ) from error
    except (OSError, ValueError, ImportError) as error:
        method = checkpoint_quantisation(config)
        quantised = f" (its weights are quantised: {method})" if method else ""
        raise UserError(f"model.path: {config.path}{quantised} does not load: {_one_line(error)}") from error
    if found["missing_keys"]:  # transformers draws them at random
        missing = sorted(found["missing_keys"])
        raise UserError(
            f"model.path: the weights in {config.path} lack {missing[0]} ({len(missing)} of the model's parameters are "
            "missing): bring the model again, or name one with a language model's head."
        )
    return model.eval()


def _check_no_spill(model: Any, config: ModelConfig) -> None:
    """Raise a UserError if parts of a model lie in host memory or on disk, where each pass would wait for them."""
    spilled = sorted(part for part, where in model.hf_device_map.items() if str(where) in ("cpu", "disk"))
    if spilled:
        raise UserError(
            f"model.path: {config.path} does not fit on the {torch.cuda.device_count()} GPUs of a worker: {spilled[0]} "
            f"and {len(spilled) - 1} more of its parts would lie in host memory or on disk, and every pass wait for "
            "them. Set pool.gpus_per_worker higher, or quantise it by model.quantization."
        )


def _with_its_adapter(model: "PreTrainedModel", adapter: Adapter) -> "PreTrainedModel":
    """The base model with an adapter merged into it; beside its weights where these are quantised.

    Raises:
        UserError: the adapter's weights are damaged, or do not fit the base.
    """
    try:
        adapted = with_trained_adapters(model, adapter.folder)
    except torch.OutOfMemoryError:
        raise
    except (SafetensorError, ValueError, RuntimeError) as error:
        raise UserError(
            f"model.path: the adapter in {adapter.folder} does not load on {adapter.base.path}: {_one_line(error)}"
        ) from error
    return adapted.get_base_model().eval() if is_quantised(adapter.base) else merged(adapted)


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
        raise UserError(f"model.path: {config.path} does not load: {_one_line(error)}") from error
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
            f"model.path: the config.json of {config.path} is of no model that transformers knows: {_one_line(error)}"
        ) from error


def checkpoint_quantisation(config: ModelConfig) -> str | None:
    """The method that a model's weights are quantised by as they lie in its folder; None where they are whole."""
    settings = read_json(model_folder(config, weights=False) / "config.json").get("quantization_config")
    return str(settings.get("quant_method", "by an unnamed method")) if settings else None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:400]


def is_quantised(config: ModelConfig) -> bool:
    """Whether the weights are held quantised, as they lie or as they are loaded."""
    return config.quantization is not None or checkpoint_quantisation(config) is not None


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


def vocabulary_size(model: "PreTrainedModel") -> int:
    """Number of ids that the model has embeddings of; a device that is asked for another one may fail for good."""
    embeddings: Any = model.get_input_embeddings()
    return int(embeddings.weight.shape[0])


def model_fingerprint(config: ModelConfig) -> str:
    """Short hash of configuration and weights, in a second: 64 blocks, spread evenly, stand for a large file.

    A commit on the hub stands for all that is in it, so that nobody downloads weights for their fingerprint alone.
    """
    adapter = adapter_of(config, weights=False)
    if adapter is None and config.commit:
        return config.commit[:16]
    in_store = "://" in config.path  # whose files need not be copied here for it
    digest = hashlib.sha256()
    if adapter is None:
        files, names = model_folder(config, weights=not in_store), ["config.json"]
    else:
        files, names = (adapter_of(config) or adapter).folder, [ADAPTER]
        digest.update(model_fingerprint(adapter.base).encode())
    folder = Folder(config.path if in_store else str(files))
    names += folder.files(WEIGHTS.removeprefix("*"))
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
