"""The course of stage `export`, which moves weights in this process: there is nothing to spread.

The folder holds what `transformers` loads (weights, configuration, tokenizer), or with merge=false what PEFT loads (the
adapter, which names its base model, and the tokenizer); README.md, the model card (`analysis/model_card.py`); and
plan.json and manifest.json, nlft-ray's own record. With `push_to_hub`, the model and its card go to the hub too.
"""

import time
from typing import Any

from nlft_ray.analysis.model_card import CARD, card_metadata, new_card
from nlft_ray.analysis.run import read_training
from nlft_ray.config import ExportConfig, ModelConfig
from nlft_ray.errors import UserError
from nlft_ray.log import log
from nlft_ray.models.folders import model_folder
from nlft_ray.models.loading import model_fingerprint
from nlft_ray.stages.export.model import save_adapter_folder, save_model_folder, trained_model
from nlft_ray.storage.folder import Folder
from nlft_ray.tables.manifest import Manifest, StageResult, begin, finish, identity_of, input_fingerprint, read_manifest
from nlft_ray.tables.training import WEIGHTS


def export(config: ExportConfig) -> StageResult:
    """Write the trained model as a Hugging Face folder. Killed at any moment and started again, it is written anew.

    Raises:
        UserError: the input is no finished training, its base model was changed since, the output is taken, or an
            adapter is asked for where a whole model was trained; or the hub does not take it.
    """
    result = _export(config)
    if config.push_to_hub is not None:
        from nlft_ray.stages.export.hub import push

        version = result.manifest.identity.software_version
        message = f"A model fine-tuned by nlft-ray {version}"
        address = push(Folder(config.output), config.push_to_hub, private=config.hub_private, message=message)
        log(f"export: the model is at {address}")
    return result


def _export(config: ExportConfig) -> StageResult:
    source, output = Folder(config.input), Folder(config.output)
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
    parameters = _save(config, base, source / WEIGHTS, output)
    output.write_text(CARD, _card(config, base, source))
    manifest = Manifest(
        identity=identity,
        rows_in=trained.rows_out,
        rows_out=trained.rows_out,
        rows_rejected=0,
        seconds=time.monotonic() - began,
        counts={"parameters": parameters},
    )
    finish(output, manifest)
    return StageResult(output=config.output, manifest=manifest)


def _save(config: ExportConfig, base: ModelConfig, source: Folder, output: Folder) -> int:
    """Write everything but the card; the number of parameters."""
    with source.local_files(source.files("")) as weights:
        if not config.merge:
            return save_adapter_folder(weights, base, output, _dtype(config))
        model = trained_model(base, weights, _dtype(config))
    save_model_folder(model, base, output)
    return sum(parameter.numel() for parameter in model.parameters())


def _card(config: ExportConfig, base: ModelConfig, source: Folder) -> str:
    run = read_training(source)
    return new_card(run, run.stages[0], base=_metadata(base), adapter=not config.merge)


def _metadata(base: ModelConfig) -> dict[str, Any]:
    """The metadata of the base model's own card, its licence above all; empty where it has none."""
    card = model_folder(base, weights=False) / CARD
    if not card.is_file():
        return {}
    try:
        return card_metadata(card.read_text(encoding="utf-8"))
    except ValueError as error:
        log(f"export: {card} is not read, so the new card says nothing of a licence: {error}")
        return {}


def _check_base(base: ModelConfig, trained: Manifest) -> None:
    present = model_fingerprint(base)
    if present != trained.identity.model:
        raise UserError(
            f"input: {base.path} is not the model any more that was trained (weights: {trained.identity.model} then, "
            f"{present} now). Bring the original back, or train again."
        )


def _dtype(config: ExportConfig) -> Any:
    import torch

    return None if config.dtype is None else getattr(torch, config.dtype)
