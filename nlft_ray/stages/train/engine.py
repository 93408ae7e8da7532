"""DeepSpeed, which this file alone names: the model with its optimizer, spread over the workers as a ZeRO stage says.

The loop asks an `Engine` for log-odds, gives it losses and has it take steps. What a training has learned comes out of
it, and goes back in, by parameter: its value in float32 and Adam's two moments, each whole. DeepSpeed keeps them in
flat pieces that depend on the ZeRO stage and on the number of workers. By name and whole they fit every stage and every
number, so a checkpoint of these needs no conversion.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from nlft_ray.config import TrainConfig
from nlft_ray.core.logprobs import token_log_odds
from nlft_ray.models.abilities import (
    TRIAL_PROMPT,
    TRIAL_RESPONSES,
    equal_but_for_rounding,
    gives_logits_of_head,
)
from nlft_ray.models.adapters import adapted_share, outside_the_language_model, with_adapters
from nlft_ray.models.attention import attend_by_segments
from nlft_ray.models.loading import dtype_of, load_model
from nlft_ray.stages.train.deepspeed_config import deepspeed_config
from nlft_ray.stages.train.examples import Example, MicroBatch
from nlft_ray.stages.train.model import LogOddsHead, TokenKeys, use_keyed_dropout

VALUE, MOMENTS, STEP = "value", ("exp_avg", "exp_avg_sq"), "step"
STATES = (VALUE, *MOMENTS)


@dataclass
class Engine:
    """A model that DeepSpeed trains."""

    deepspeed: Any
    """The `DeepSpeedEngine`."""
    head: LogOddsHead | None
    """The LM head, where log-odds can be asked of it; else all logits of the positions to keep are made."""
    packed: bool
    """Whether the model reads rows one after another; else they are padded."""
    dropout: TokenKeys | None
    """To be set before each pass in training, where adapters drop."""
    adapted_share: float | None = None
    """The share of the language model's parameters that adapters change; None without adapters."""

    @property
    def model(self) -> Any:
        return self.deepspeed.module

    @property
    def device(self) -> torch.device:
        return self.deepspeed.device

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        """Those that the optimizer changes, in the model's order; a tied one comes once."""
        return {name: parameter for name, parameter in self.model.named_parameters() if parameter.requires_grad}

    def log_odds(self, batch: MicroBatch) -> Tensor:
        """(M,) log(p/(1 - p)) of the tokens with a weight."""
        if self.head is not None:
            with self.head.asked_for(batch.keep, batch.targets):
                return self.deepspeed(**batch.inputs).logits.flatten()
        with _head_reads_only(self.model, batch.keep):
            return token_log_odds(self.deepspeed(**batch.inputs).logits[0], batch.targets)

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add the gradients of a micro-batch's loss to the step's; `last` is the step's last micro-batch.

        They simply add up, over micro-batches and workers. DeepSpeed would divide by the number of micro-batches, which
        scale_wrt_gas turns off, and it averages over the workers instead of adding, which the factor undoes.
        """
        self.deepspeed.backward(loss * dist.get_world_size(), scale_wrt_gas=False)
        if not last:
            self.deepspeed.step()  # within the accumulation: only counts

    def step(self, learning_rate: float) -> float:
        """Take the optimizer's step; the norm of the gradient before it was limited."""
        for group in self.deepspeed.optimizer.param_groups:
            group["lr"] = learning_rate
        norm: float | Tensor | None = None
        if isinstance(self.deepspeed.optimizer, torch.optim.Optimizer):  # DeepSpeed does not say it: float32, no ZeRO
            gradients = [parameter.grad for parameter in self.trained_parameters().values()]
            norm = torch.nn.utils.get_total_norm([gradient for gradient in gradients if gradient is not None])
        self.deepspeed.step()
        norm = self.deepspeed.get_global_grad_norm() if norm is None else norm
        return float(norm) if norm is not None else float("nan")

    @contextmanager
    def evaluation(self) -> Iterator[None]:
        """Within, passes drop nothing and leave no gradients."""
        self.deepspeed.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self.deepspeed.train()

    def gather_parameters(self, *, trained_only: bool) -> dict[str, Tensor]:
        """Parameters by name, on the CPU of the first worker; empty on the others. Every worker calls it.

        Under ZeRO-3 each is spread over the workers. One at a time is brought together, so that no device ever needs
        room for the model; in the other stages there is nothing to bring together. All are copied: under ZeRO-1 and 2
        they are parts of one storage, which could not be written.
        """
        parameters = self.trained_parameters() if trained_only else dict(self.model.named_parameters())
        gathered = {}
        for name, parameter in parameters.items():
            with _whole(parameter):
                if dist.get_rank() == 0:
                    gathered[name] = parameter.detach().to("cpu", copy=True).contiguous()
        return gathered

    def gather_states(self) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """Name, and the value and moments, (shape of the parameter) float32, one parameter after the other.

        Every worker calls it and goes to its end: pieces are exchanged. The tensors may be those that training goes on
        with: copy what is kept.
        """
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        masters = self._master_values()
        for name, parameter in self.trained_parameters().items():
            if masters:
                value = masters[parameter]
                states = self.deepspeed.basic_optimizer.state[value]
                yield name, {VALUE: value.detach()} | {moment: states[moment] for moment in MOMENTS}
            else:
                value = safe_get_full_fp32_param(parameter)
                yield name, {VALUE: value} | {m: safe_get_full_optimizer_state(parameter, m) for m in MOMENTS}

    @property
    def optimizer_steps(self) -> int:
        """Steps that Adam has taken: its correction of the moments' bias depends on them."""
        states = self.deepspeed.basic_optimizer.state.values()
        return max((int(state[STEP]) for state in states if STEP in state), default=0)

    def set_states(self, read: Callable[[str], Mapping[str, Tensor]], optimizer_steps: int) -> None:
        """Give the engine what `gather_states` and `optimizer_steps` said of another. Every worker calls it.

        Args:
            read: Value and moments of a parameter by its name.
        """
        self._make_moments(optimizer_steps)
        masters = self._master_values()
        for name, parameter in self.trained_parameters().items():
            states = {kind: tensor.to(self.device) for kind, tensor in read(name).items()}
            if masters:
                _copy(states, masters[parameter], self.deepspeed.basic_optimizer.state[masters[parameter]])
            else:
                _set_pieces(parameter, states)
            # What the model computes with is mostly another tensor than the one that the optimizer works on.
            with torch.no_grad(), _whole(parameter, changed_by=0):
                parameter.copy_(states[VALUE])

    def _master_values(self) -> dict[nn.Parameter, Tensor]:
        """Without ZeRO, the float32 tensor that the optimizer works on: the parameter, or in bfloat16 a copy of it."""
        optimizer = self.deepspeed.optimizer
        if isinstance(optimizer, torch.optim.Optimizer):
            return {parameter: parameter for group in optimizer.param_groups for parameter in group["params"]}
        if not hasattr(optimizer, "fp32_groups"):
            return {}
        pairs = zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True)
        return {low: high for lows, highs in pairs for low, high in zip(lows, highs, strict=True)}

    def _make_moments(self, steps: int) -> None:
        """Make Adam's states before the first step, with which the optimizer would make them."""
        optimizer, adam = self.deepspeed.optimizer, self.deepspeed.basic_optimizer
        flat = getattr(optimizer, "fp32_partitioned_groups_flat", None)  # ZeRO-3, whose groups are empty between steps
        if flat is None:
            flat = [parameter for group in adam.param_groups for parameter in group["params"]]
        for parameter in flat:
            state = adam.state[parameter]
            state[STEP] = torch.tensor(float(steps)) if isinstance(adam, torch.optim.Adam) else steps
            for moment in MOMENTS:
                state[moment] = torch.zeros_like(parameter, requires_grad=False)
        if hasattr(optimizer, "_hp_optimizer_states_linked"):  # ZeRO 1 and 2, and bfloat16 without ZeRO
            optimizer._hp_optimizer_states_linked = False
            optimizer._lazy_init_hp_params_optimizer_state()


def parameter_size(parameter: nn.Parameter) -> int:
    """Number of elements, also where ZeRO-3 has spread them."""
    return int(getattr(parameter, "ds_numel", None) or parameter.numel())


def _whole(parameter: nn.Parameter, changed_by: int | None = None) -> Any:
    """A context in which the parameter is whole; what the worker `changed_by` changes, all have afterwards."""
    import deepspeed

    return deepspeed.zero.GatheredParameters([parameter], modifier_rank=changed_by)


@torch.no_grad()
def _copy(states: Mapping[str, Tensor], value: Tensor, moments: Mapping[str, Tensor]) -> None:
    value.copy_(states[VALUE])
    for moment in MOMENTS:
        moments[moment].copy_(states[moment])


def _set_pieces(parameter: nn.Parameter, states: Mapping[str, Tensor]) -> None:
    from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

    safe_set_full_fp32_param(parameter, states[VALUE])
    for moment in MOMENTS:
        safe_set_full_optimizer_state(parameter, states[moment], moment)


def build_engine(config: TrainConfig, micro_steps: int) -> Engine:
    """Load the model onto this worker and hand it to DeepSpeed. Every worker calls it: parameters are exchanged.

    Raises:
        UserError: the model does not load, or the adapters' targets are not in it.
    """
    import deepspeed
    from transformers.integrations import HfDeepSpeedConfig

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    bfloat16 = dtype_of(config.model) == torch.bfloat16
    settings = deepspeed_config(config, bfloat16, config.micro_batch_size_per_worker, micro_steps)
    # DeepSpeed takes over the process group that stands. On a CPU it would compile its own shared-memory operation
    # for it at the first start; gloo does without.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed()
    # While this lives, transformers partitions parameters as it loads them, if ZeRO-3 is on. It finds it through a weak
    # reference; after this function whatever else is loaded here is whole again.
    partitioning = HfDeepSpeedConfig(settings)
    model: Any = load_model(config.model)
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    for part in outside_the_language_model(model):
        model.get_submodule(part).requires_grad_(False)
    share = None
    packed = config.packed and attend_by_segments(model) is not None
    if config.lora is not None:
        model = with_adapters(model, config.model, config.lora, config.seed)
        share = adapted_share(model)
    head = LogOddsHead.replace(model)
    dropout = use_keyed_dropout(model, config.lora.dropout if config.lora else 0.0)
    model.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    engine, *_ = deepspeed.initialize(model=model, model_parameters=trained, config=settings)
    del partitioning
    return without_wrong_shortcuts(Engine(engine, head, packed, dropout, share))


def without_wrong_shortcuts(engine: Engine) -> Engine:
    """The engine, without each shortcut whose log-odds differ from the plain forward pass of each row alone.

    A model may scale or cap what its head gives: the head's output alone decides that, in every type of numbers. It may
    mix packed rows in other places than attention: two short rows, of ids that every vocabulary has, show it. Every
    worker calls this; where one of them may not take a shortcut, none does.
    """
    start = len(TRIAL_PROMPT)
    rows = [np.array([*TRIAL_PROMPT, *response], np.int32) for response in TRIAL_RESPONSES]
    ones = np.ones(max(map(len, TRIAL_RESPONSES)), np.float32)
    examples = [Example("", ids, start, ones[: len(ids) - start], 0 * ones[: len(ids) - start], ones) for ids in rows]

    def agrees(way: Engine) -> bool:
        together = MicroBatch.of(examples, 0, packed=way.packed).to(way.device)
        return equal_but_for_rounding(way.log_odds(together), plain, dtype)

    alone = [MicroBatch.of([example], 0, packed=False).to(engine.device) for example in examples]
    dtype = next(engine.model.parameters()).dtype
    with engine.evaluation():
        logits = [engine.deepspeed(**row.inputs).logits[row.keep] for row in alone]
        plain = torch.cat([token_log_odds(some, row.targets) for some, row in zip(logits, alone, strict=True)])
        right = [False, False]
        if engine.packed:
            right[0] = agrees(replace(engine, head=None))
        if engine.head is not None:
            as_given = gives_logits_of_head(engine.deepspeed, engine.head, engine.device)
            right[1] = agrees(replace(engine, packed=False)) and as_given  # each worker takes part in both passes
        agreed = torch.tensor(right, dtype=torch.int32, device=engine.device)
        dist.all_reduce(agreed, op=dist.ReduceOp.MIN)
    packs, asks = agreed.bool().tolist()
    return replace(engine, packed=packs, head=engine.head if asks else None)


@contextmanager
def _head_reads_only(model: Any, keep: Tensor) -> Iterator[None]:
    """Within, the model gives (1, M, V) logits of the M positions to keep (R, T): its LM head is given no others."""
    hook = model.get_output_embeddings().register_forward_pre_hook(
        lambda _head, arguments: (arguments[0][keep][None], *arguments[1:])
    )
    try:
        yield
    finally:
        hook.remove()


def leave_process_group() -> None:
    """Destroy this process's group, with what DeepSpeed holds of it, so that another can be made."""
    import deepspeed

    if deepspeed.comm.is_initialized():
        deepspeed.comm.destroy_process_group()
    else:
        dist.destroy_process_group()
