"""`nlft-ray plan` as a function: the memory that a model needs, and settings that fit."""

from dataclasses import dataclass, fields
from typing import Any

import yaml

from nlft_ray.config import LengthsConfig, LoraConfig, ModelConfig, PlanConfig
from nlft_ray.config.shared import automatic_dtype
from nlft_ray.core.policies import Policy
from nlft_ray.errors import UserError
from nlft_ray.notebook import html_table
from nlft_ray.planning.choice import ScoringChoice, TrainingChoice, TrainingSearch, choose_scoring
from nlft_ray.planning.devices import GIB, Devices, devices_of
from nlft_ray.planning.meta import read_adapters, read_shape
from nlft_ray.planning.shape import Adapters, Shape
from nlft_ray.storage.folder import Folder

ZERO_STAGES = (0, 1, 2, 3)


@dataclass(frozen=True)
class Alternatives:
    """The four ZeRO stages of LoRA or of full fine-tuning, without and with gradient checkpointing."""

    adapters: Adapters | None
    by_stage: dict[int, tuple[TrainingChoice, TrainingChoice]]


@dataclass(frozen=True)
class Plan:
    """A model, the devices, and the settings that fit: what `plan` returns."""

    config: PlanConfig
    shape: Shape
    adapters: Adapters
    """The adapters that the settings ask for, or the default ones."""
    devices: Devices
    dtype: str
    scoring: ScoringChoice
    training: TrainingChoice | None
    """The recommended one; None where nothing fits."""
    alternatives: tuple[Alternatives, Alternatives]
    """LoRA, then full fine-tuning, with one example in a micro-batch."""

    @property
    def score_yaml(self) -> str:
        """Settings for `nlft-ray score --config`."""
        options = self.config.score.model_dump(mode="json", exclude_defaults=True)
        values = {"model": self._model(), **options, "max_tokens_per_batch": self.scoring.max_tokens_per_batch}
        processes = {"tensor_parallel": self.scoring.processes} if self.scoring.processes > 1 else {}
        return _yaml(values | {"pool": {"max_workers": self.scoring.workers} | processes})

    @property
    def train_yaml(self) -> str | None:
        """Settings for `nlft-ray train --config`; None where nothing fits."""
        if self.training is None:
            return None
        setup, train = self.training.setup, self.config.train
        every, options = train.model_dump(mode="json"), train.model_dump(mode="json", exclude_defaults=True)
        chosen = {
            "num_workers": setup.workers,
            "zero_stage": setup.zero_stage,
            "gradient_checkpointing": setup.gradient_checkpointing,
            "micro_batch_size_per_worker": self.training.micro_batch_size,
        }
        always = {"batch_size": train.batch_size, "lora": every["lora"], "policy": _policy(train.policy)}
        return _yaml({"model": self._model(), **chosen, **options, **always})

    def _repr_html_(self) -> str:
        """The table that a notebook shows."""
        rows = [("score", self.scoring), ("train", self.training)]
        return html_table(
            f"{self.config.model.path} on {self.devices}",
            ("", "workers", "GiB needed", "GiB there"),
            [
                (stage, str(choice.workers), f"{choice.memory.total / GIB:.2f}", f"{choice.usable / GIB:.2f}")
                for stage, choice in rows
                if choice is not None
            ],
        )

    def _model(self) -> dict[str, Any]:
        return self.config.model.model_dump(mode="json", exclude_defaults=True) | {"dtype": self.dtype}


def plan(config: PlanConfig) -> Plan:
    """Work out what scoring and training need, and which settings fit; write them where `output` says.

    Raises:
        UserError: the model's configuration cannot be read, it is to be quantised, or the lengths are beyond it.
    """
    if config.model.quantization is not None:
        raise UserError("model.quantization: the memory of quantised weights is not worked out. Plan without it.")
    shape, devices = read_shape(config.model, config.tensor_parallel), devices_of(config.cluster)
    config = config.model_copy(update={"lengths": _lengths(config, shape)})
    adapters = read_adapters(config.model, config.train.lora or LoraConfig())
    dtype = _dtype(config.model, devices)
    number_bytes = {"float32": 4, "bfloat16": 2}[dtype]
    lora, full = (TrainingSearch(config, shape, which, devices, number_bytes) for which in (adapters, None))
    result = Plan(
        config=config,
        shape=shape,
        adapters=adapters,
        devices=devices,
        dtype=dtype,
        scoring=choose_scoring(config, shape, devices, number_bytes),
        training=(full if config.train.lora is None else lora).fastest(),
        alternatives=(_alternatives(lora, adapters), _alternatives(full, None)),
    )
    if config.output is not None:
        _write(result, Folder(config.output))
    return result


def _alternatives(search: TrainingSearch, adapters: Adapters | None) -> Alternatives:
    def choice(stage: int, checkpointing: bool) -> TrainingChoice:
        return search.choice(stage, checkpointing, search.workers(), 1)

    return Alternatives(adapters, {stage: (choice(stage, False), choice(stage, True)) for stage in ZERO_STAGES})


def _dtype(model: ModelConfig, devices: Devices) -> str:
    if model.dtype == "auto":
        return automatic_dtype(on_gpu=devices.kind == "gpu")
    return model.dtype


def _lengths(config: PlanConfig, shape: Shape) -> LengthsConfig:
    """Lengths to plan for: those that are set, else the usual ones, shrunk to what the model takes."""
    lengths, room = config.lengths, config.model.max_length or shape.positions
    longest = (
        lengths.prompt_tokens + lengths.response_tokens + max(lengths.judgment_tokens, lengths.standard_answer_tokens)
    )
    if room is None or longest <= room:
        return lengths
    if lengths.model_fields_set:
        raise UserError(
            f"lengths: prompt, response and judgment or standard answer make {longest} tokens, "
            f"{config.model.path} takes {room}. Rows that long would be rejected: set lengths that fit."
        )
    return LengthsConfig(**{name: tokens * room // longest for name, tokens in lengths.model_dump().items()})


def _policy(policy: Policy) -> dict[str, Any]:
    """Name of a policy, and the numbers that are not its defaults."""
    numbers = {field.name: getattr(policy, field.name) for field in fields(policy)}
    changed = {field.name: numbers[field.name] for field in fields(policy) if numbers[field.name] != field.default}
    return {"name": policy.name} | changed


def _write(result: Plan, folder: Folder) -> None:
    for stage, text in (("score", result.score_yaml), ("train", result.train_yaml)):
        if text is not None:
            folder.write_text(f"{stage}.yaml", text)


def _yaml(values: dict[str, Any]) -> str:
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
