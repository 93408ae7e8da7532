"""The model under DeepSpeed: loaded, given adapters where asked for, its trainable parameters with the optimizer."""

import inspect
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nlft_ray import sandbox
from nlft_ray.config import LoraConfig, ModelConfig, TrainConfig
from nlft_ray.core.logprobs import token_log_odds
from nlft_ray.errors import UserError
from nlft_ray.models.abilities import TRIAL_PROMPT, TRIAL_RESPONSES, equal_but_for_rounding
from nlft_ray.models.loading import dtype_of, load_model
from nlft_ray.models.packing import attend_by_segments
from nlft_ray.stages.train.batch import MicroBatch
from nlft_ray.stages.train.deepspeed_config import deepspeed_config
from nlft_ray.stages.train.dropout import TokenKeys, use_keyed_dropout
from nlft_ray.stages.train.examples import Example
from nlft_ray.stages.train.head import LogOddsHead


@dataclass
class Engine:
    """A model that DeepSpeed trains."""

    deepspeed: Any
    """The `DeepSpeedEngine`."""
    keeps_logits: bool
    """Whether the model's forward takes `logits_to_keep`."""
    head: LogOddsHead | None
    """The LM head, where log-odds can be asked of it; else all logits of the positions to keep are made."""
    packed: bool
    """Whether the model reads rows one after another; else they are padded."""
    dropout: TokenKeys | None
    """To be set before each pass in training, where adapters drop."""

    @property
    def model(self) -> nn.Module:
        return self.deepspeed.module

    @property
    def device(self) -> torch.device:
        return self.deepspeed.device

    def log_odds(self, batch: MicroBatch) -> Tensor:
        """(M,) log(p/(1 - p)) of the tokens with a weight."""
        if self.head is not None:
            with self.head.asked_for(batch.keep, batch.targets):
                return self.deepspeed(**batch.inputs).logits.flatten()
        if self.keeps_logits:
            logits = self.deepspeed(**batch.inputs, logits_to_keep=batch.keep).logits
            return token_log_odds(logits.reshape(-1, logits.shape[-1]), batch.targets)
        return token_log_odds(self.deepspeed(**batch.inputs).logits[batch.keep], batch.targets)

    def set_learning_rate(self, rate: float) -> None:
        for group in self.deepspeed.optimizer.param_groups:
            group["lr"] = rate

    def trainable_parameters(self) -> list[nn.Parameter]:
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]


def build_engine(config: TrainConfig, micro_steps: int) -> Engine:
    """Load the model onto this worker and hand it to DeepSpeed. Every worker calls it: parameters are exchanged.

    Raises:
        UserError: the model does not load, or the adapters' targets are not in it.
    """
    import deepspeed
    from transformers.integrations import HfDeepSpeedConfig

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    settings = deepspeed_config(config, dtype_of(config.model), config.micro_batch_size_per_worker, micro_steps)
    _init_communication(deepspeed)
    # While this lives, transformers partitions parameters as it loads them, if ZeRO-3 is on. It finds it through a weak
    # reference; after this function whatever else is loaded here is whole again.
    partitioning = HfDeepSpeedConfig(settings)
    model = load_model(config.model)
    keeps_logits = "logits_to_keep" in inspect.signature(model.forward).parameters
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    packed = config.packed and attend_by_segments(model)
    if config.lora is not None:
        model = _with_adapters(model, config.model, config.lora, config.seed)
    head = LogOddsHead.replace(model)
    dropout = use_keyed_dropout(model, config.lora.dropout if config.lora else 0.0)
    model.train()
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    engine, *_ = deepspeed.initialize(model=model, model_parameters=trainable, config=settings)
    del partitioning
    return _tried(Engine(engine, keeps_logits, head, packed, dropout))


@torch.no_grad()
def _tried(engine: Engine) -> Engine:
    """The engine, without those of its shortcuts that do not tell the same as the plain way.

    A model may scale or bend what its head gives, or mix rows in other places than attention: that shows on a few rows.
    """
    start = len(TRIAL_PROMPT)
    rows = [np.array([*TRIAL_PROMPT, *response], np.int32) for response in TRIAL_RESPONSES]
    ones = np.ones(max(map(len, TRIAL_RESPONSES)), np.float32)
    examples = [Example("", ids, start, ones[: len(ids) - start], 0 * ones[: len(ids) - start], ones) for ids in rows]

    def found(way: Engine, parts: Sequence[Sequence[Example]]) -> Tensor:
        batches = [MicroBatch.of(part, 0, packed=way.packed).to(way.device) for part in parts]
        return torch.cat([way.log_odds(batch) for batch in batches])

    engine.deepspeed.eval()
    plainly = found(replace(engine, head=None, packed=False), [[example] for example in examples])
    dtype = next(engine.model.parameters()).dtype
    for leave_out in ({}, {"head": None}, {"packed": False}, {"head": None, "packed": False}):
        way = replace(engine, **leave_out)
        if equal_but_for_rounding(found(way, [examples]), plainly, dtype):
            break
    engine.deepspeed.train()
    return way


def _init_communication(deepspeed: Any) -> None:
    """DeepSpeed takes over the process group that stands. On a CPU it would compile its own shared-memory operation
    for it at the first start; gloo does without."""
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed()


def _with_adapters(model: Any, model_config: ModelConfig, lora: LoraConfig, seed: int) -> Any:
    import peft

    torch.manual_seed(seed)  # every worker draws the same adapters
    adapters = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # a float works as well
        lora_dropout=lora.dropout,
        target_modules=lora.targets,
    )
    try:
        # DeepSpeed keeps float32 copies of what it trains, so adapters can have the model's own type.
        adapted = peft.get_peft_model(model, adapters, autocast_adapter_dtype=False)
    except ValueError as error:
        linear = sorted(
            {name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, nn.Linear)}
        )
        raise UserError(
            f"lora.targets: {lora.targets} does not fit {model_config.path}, whose linear modules are called "
            f"{', '.join(linear)}. ({error})"
        ) from error
    adapted.peft_config["default"].base_model_name_or_path = _public_name(model_config)
    adapted.peft_config["default"].revision = model_config.revision
    return adapted


def _public_name(config: ModelConfig) -> str:
    """How others find the base model: not by where this machine's cache happens to hold it."""
    return str(sandbox.MODEL_FOLDER) if config.path == "sandbox" else config.path
