"""The model as it is trained: a LM head that gives log-odds, dropout that follows from the text; its files.

Dropout follows from the seed, the step and the text, not from where in which batch a row stands. Each number that is
dropped or left is drawn by hashing: of the tokens up to and with its own, its place in the hidden state, its layer, the
step and the seed. So the same row is given the same masks alone, padded or packed; and a beginning that rows share,
which may run once for all of them, has the same masks in each.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nlft_ray.core.head import head_log_odds
from nlft_ray.storage.folder import Folder
from nlft_ray.tables.training import WEIGHTS

_FILE_SIZE = "5GB"  # of a model's file: what is being written may be in memory once more
_GOLDEN = 0x9E3779B97F4A7C15 - 2**64  # the odd numbers of splitmix64 and of murmur3's finish, as signed ones
_SPLITMIX = (0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64)
_MURMUR = (0x85EBCA6B - 2**32, 0xC2B2AE35 - 2**32)


class LogOddsHead(nn.Linear):
    """A linear LM head that can be asked for the log-odds of certain tokens instead of all logits.

    It takes the place of the model's own, with its parameters under their names. The model's own forward calls it, so
    that whatever spreads parameters over workers brings this one together.
    """

    _wanted: tuple[Tensor, Tensor] | None = None

    @classmethod
    def replace(cls, model: Any) -> "LogOddsHead | None":
        """Put one into the model; None, and nothing done, where its head is not plainly linear."""
        head = model.get_output_embeddings()
        if type(head) is not nn.Linear:
            return None
        with torch.device("meta"):
            own = cls(head.in_features, head.out_features, bias=head.bias is not None)
        own.weight, own.bias = head.weight, head.bias
        model.set_output_embeddings(own)
        return own

    @contextmanager
    def asked_for(self, keep: Tensor, targets: Tensor) -> Iterator[None]:
        """Within, the head gives (M, 1) log-odds of the M targets at the positions to keep (R, T), not logits."""
        self._wanted = keep, targets
        try:
            yield
        finally:
            self._wanted = None

    def forward(self, hidden: Tensor) -> Tensor:
        if self._wanted is None:
            return super().forward(hidden)
        keep, targets = self._wanted
        return head_log_odds(hidden[keep], self.weight, self.bias, targets)[:, None]


class TokenKeys:
    """The place of a pass in the random masks of all its layers: a key for each token."""

    def __init__(self) -> None:
        self._keys: Tensor | None = None

    def set(self, inputs: dict[str, Any], seed: int, step: int) -> None:
        """Take the keys of a pass from the model's inputs, as `MicroBatch` has them.

        They hold until the next pass, since recomputation in the backward pass must find the same masks.
        """
        draw = torch.tensor([seed, step], device=inputs["input_ids"].device).mul_(_GOLDEN).cumsum(0)
        self._keys = _mixed(_hashes_of_beginnings(inputs) + _mixed(draw).sum())

    def of_layer(self, layer: int) -> Tensor:
        """(R, T, 1) int32."""
        assert self._keys is not None, "keys are set before a pass"
        keys = _mixed(self._keys + layer * 2 + 1)
        return (keys ^ _shifted(keys, 32)).to(torch.int32)[..., None]


class KeyedDropout(nn.Module):
    """Dropout on hidden states, (R, T, d) or, as before experts, (R·T, d)."""

    def __init__(self, probability: float, layer: int, keys: TokenKeys):
        super().__init__()
        self._probability, self._layer, self._keys = probability, layer, keys

    def forward(self, hidden: Tensor) -> Tensor:
        if not self.training:
            return hidden
        places = _mixed(torch.arange(1, hidden.shape[-1] + 1, device=hidden.device) * _GOLDEN).to(torch.int32)
        keys = self._keys.of_layer(self._layer).view(*hidden.shape[:-1], 1)
        drawn = _mixed_32(keys ^ places) & 0x7FFFFFFF
        mask = drawn >= int(self._probability * 2**31)
        return hidden * (mask.to(hidden.dtype) / (1 - self._probability))


def use_keyed_dropout(model: nn.Module, probability: float) -> TokenKeys | None:
    """Make a model's adapters drop by keys, and turn off its own dropout, which most models have not.

    Returns:
        What has to be set before each pass; None where nothing is dropped.
    """
    keys, layers = TokenKeys(), 0
    module: Any
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if "drop" in name and isinstance(value, float):  # of a function that the module calls
                setattr(module, name, 0.0)
        if probability and hasattr(module, "lora_dropout"):
            for name in module.lora_dropout:
                module.lora_dropout[name] = KeyedDropout(probability, layers, keys)
            layers += 1
    return keys if layers else None


def _hashes_of_beginnings(inputs: dict[str, Any]) -> Tensor:
    """(R, T) int64: the same for two tokens where all tokens up to them are the same."""
    ids = inputs["input_ids"]
    positions = inputs["position_ids"] if "position_ids" in inputs else torch.arange(ids.shape[1], device=ids.device)
    terms = _mixed(ids * _GOLDEN + positions)
    if "segments" not in inputs:
        return terms.cumsum(1)
    parts = []
    for segment in inputs["segments"]:
        before = [terms[:, part].sum() for part in segment.reads[:-1]]
        parts.append(terms[:, segment.own].cumsum(1) + sum(before))
    return torch.cat(parts, dim=1)


def _mixed(words: Tensor) -> Tensor:
    """int64: splitmix64, https://prng.di.unimi.it/splitmix64.c"""
    words = (words ^ _shifted(words, 30)) * _SPLITMIX[0]
    words = (words ^ _shifted(words, 27)) * _SPLITMIX[1]
    return words ^ _shifted(words, 31)


def _mixed_32(words: Tensor) -> Tensor:
    """int32, in place: the finish of murmur3, https://github.com/aappleby/smhasher"""
    words.bitwise_xor_((words >> 16) & 0xFFFF).mul_(_MURMUR[0])
    words.bitwise_xor_((words >> 13) & 0x7FFFF).mul_(_MURMUR[1])
    return words.bitwise_xor_((words >> 16) & 0xFFFF)


def _shifted(words: Tensor, by: int) -> Tensor:
    """int64 as if it had no sign: zeros come in from the left."""
    return (words >> by) & (2 ** (64 - by) - 1)


def write_weights(model: Any, parameters: dict[str, Tensor], output: Folder) -> None:
    """Write `weights/`: a PEFT adapter folder where the model has adapters, else the whole model's folder.

    Args:
        parameters: By name, on the CPU; of a model with adapters, only what was trained.
    """
    with (output / WEIGHTS).atomic_files() as folder:
        if hasattr(model, "peft_config"):
            _write_adapters(model, parameters, folder)
        else:
            names = {name for name, _ in model.named_parameters(remove_duplicate=False)}
            buffers = {name: tensor for name, tensor in model.state_dict().items() if name not in names}
            model.save_pretrained(folder, state_dict=parameters | buffers, max_shard_size=_FILE_SIZE)


def _write_adapters(model: Any, parameters: dict[str, Tensor], folder: Path) -> None:
    import peft
    from safetensors.torch import save_file

    tensors = peft.get_peft_model_state_dict(model, state_dict=parameters, save_embedding_layers=False)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    settings = model.peft_config["default"]
    training, settings.inference_mode = settings.inference_mode, True
    settings.save_pretrained(str(folder))
    settings.inference_mode = training
