"""What a training leaves behind: `weights/`, a PEFT adapter folder, or a whole model's folder."""

from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

from nlft_ray.stages.train.engine import Engine
from nlft_ray.storage.folder import Folder
from nlft_ray.tables.training import WEIGHTS

_SHARD = "5GB"  # of a model's file: what is being written may be in memory once more


def write_weights(engine: Engine, output: Folder, *, adapters: bool) -> None:
    """Bring the parameters together and write them. Every worker calls it; the first one writes, when all have done
    their part: who fails then lets nobody wait."""
    parameters = _gathered(engine.model, adapters)
    if dist.get_rank() == 0:
        with (output / WEIGHTS).filled_locally() as folder:
            if adapters:
                _write_adapters(engine.model, parameters, folder)
            else:
                _write_model(engine.model, parameters, folder)


def _gathered(model: nn.Module, trainable_only: bool) -> dict[str, Tensor]:
    """Parameters by name, on the CPU of the first worker; empty on the others.

    Under ZeRO-3 each is spread over the workers. One at a time is brought together, so that no device ever needs
    room for the model; in the other stages there is nothing to bring together. All are copied: under ZeRO-1 and 2
    they are parts of one storage, which could not be written.
    """
    import deepspeed

    gathered = {}
    for name, parameter in model.named_parameters():  # a tied parameter comes once
        if trainable_only and not parameter.requires_grad:
            continue
        with deepspeed.zero.GatheredParameters([parameter]):
            if dist.get_rank() == 0:
                gathered[name] = parameter.detach().to("cpu", copy=True).contiguous()
    return gathered


def _write_adapters(model: Any, parameters: dict[str, Tensor], folder: Path) -> None:
    import peft
    from safetensors.torch import save_file

    tensors = peft.get_peft_model_state_dict(model, state_dict=parameters, save_embedding_layers=False)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    settings = model.peft_config["default"]
    training, settings.inference_mode = settings.inference_mode, True
    settings.save_pretrained(str(folder))
    settings.inference_mode = training


def _write_model(model: Any, parameters: dict[str, Tensor], folder: Path) -> None:
    names = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    buffers = {name: tensor for name, tensor in model.state_dict().items() if name not in names}
    model.save_pretrained(folder, state_dict=parameters | buffers, max_shard_size=_SHARD)
