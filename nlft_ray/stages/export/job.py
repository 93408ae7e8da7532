"""Export runs in this process: it moves weights, and there is nothing to spread."""

import time
from pathlib import Path
from typing import Any

from nlft_ray.config import ExportConfig, ModelConfig
from nlft_ray.errors import UserError
from nlft_ray.manifest import Manifest, StageResult, begin, finish, identity_of, input_fingerprint, read_manifest
from nlft_ray.models import model_fingerprint
from nlft_ray.stages.export.model import save_model_folder, trained_model
from nlft_ray.storage import Folder

_WEIGHTS = "weights"


def export(config: ExportConfig) -> StageResult:
    """Write the trained model as a Hugging Face folder. Killed at any moment and started again, it is written anew.

    Raises:
        UserError: the input is no finished training, its base model was changed since, or the output is taken.
    """
    source, output = Folder(config.input), Folder(config.output)
    for option, folder in (("input", source), ("output", output)):
        if "://" in folder.uri:
            raise UserError(f"{option}: {folder} is a URI; export reads and writes folders of this machine.")
    trained = read_manifest(source, table="weights")
    base = ModelConfig.model_validate(trained.identity.config["model"])
    _check_base(base, trained)
    identity = identity_of(
        config,
        "export",
        table="model",
        model=trained.identity.model,
        tokenizer=trained.identity.tokenizer,
        input=input_fingerprint(trained),
    )
    complete = begin(output, identity, overwrite=config.overwrite)
    if complete is not None:
        return StageResult(output=config.output, manifest=complete, reused=True)
    began = time.monotonic()
    model = trained_model(base, Path(source.path) / _WEIGHTS, _dtype(config))
    save_model_folder(model, base, Path(output.path))
    manifest = Manifest(
        identity=identity,
        rows_in=trained.rows_out,
        rows_out=trained.rows_out,
        rows_rejected=0,
        seconds=time.monotonic() - began,
        counts={"parameters": sum(parameter.numel() for parameter in model.parameters())},
    )
    finish(output, manifest)
    return StageResult(output=config.output, manifest=manifest)


def _check_base(base: ModelConfig, trained: Manifest) -> None:
    found = model_fingerprint(base)
    if found != trained.identity.model:
        raise UserError(
            f"input: {base.path} is not the model any more that was trained (weights: {trained.identity.model} then, "
            f"{found} now). Bring the original back, or train again."
        )


def _dtype(config: ExportConfig) -> Any:
    import torch

    return None if config.dtype is None else getattr(torch, config.dtype)
