"""What a training has learned, by parameter: its value in float32 and Adam's two moments, each whole.

DeepSpeed keeps them in flat pieces that depend on the ZeRO stage and on the number of workers. By name and whole they
fit every stage and every number, so a checkpoint of these needs no conversion.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

VALUE, MOMENTS, STEP = "value", ("exp_avg", "exp_avg_sq"), "step"
STATES = (VALUE, *MOMENTS)


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Those that the optimizer changes, in the model's order; a tied one comes once."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def parameter_size(parameter: nn.Parameter) -> int:
    """Number of elements, also where ZeRO-3 has spread them."""
    return int(getattr(parameter, "ds_numel", None) or parameter.numel())


def gather_states(engine: Any) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Name, and the value and moments, (shape of the parameter) float32, one parameter after the other.

    Every worker calls it and goes to its end: pieces are exchanged. The tensors may be those that training goes on
    with: copy what is kept.
    """
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    whole = _whole_values(engine)
    for name, parameter in trained_parameters(engine.module).items():
        if whole:
            value = whole[parameter]
            states = engine.basic_optimizer.state[value]
            yield name, {VALUE: value.detach()} | {moment: states[moment] for moment in MOMENTS}
        else:
            value = safe_get_full_fp32_param(parameter)
            yield name, {VALUE: value} | {m: safe_get_full_optimizer_state(parameter, m) for m in MOMENTS}


def optimizer_steps(engine: Any) -> int:
    """Steps that Adam has taken: its correction of the moments' bias depends on them."""
    return max((int(state[STEP]) for state in engine.basic_optimizer.state.values() if STEP in state), default=0)


def set_states(engine: Any, read: Callable[[str], Mapping[str, Tensor]], steps: int) -> None:
    """Give the engine back what `gather_states` and `optimizer_steps` told of one. Every worker calls it.

    Args:
        read: Value and moments of a parameter by its name.
    """
    _make_moments(engine, steps)
    whole = _whole_values(engine)
    for name, parameter in trained_parameters(engine.module).items():
        states = {kind: tensor.to(engine.device) for kind, tensor in read(name).items()}
        if whole:
            _set_whole(engine, whole[parameter], states)
        else:
            _set_pieces(parameter, states)
        # What the model computes with is mostly another tensor than the one that the optimizer works on.
        _set_parameter(parameter, states[VALUE])


def _whole_values(engine: Any) -> dict[nn.Parameter, Tensor]:
    """Without ZeRO, the float32 tensor that the optimizer works on: the parameter, or in bfloat16 a copy of it."""
    optimizer = engine.optimizer
    if isinstance(optimizer, torch.optim.Optimizer):
        return {parameter: parameter for group in optimizer.param_groups for parameter in group["params"]}
    if not hasattr(optimizer, "fp32_groups"):
        return {}
    pairs = zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True)
    return {low: high for lows, highs in pairs for low, high in zip(lows, highs, strict=True)}


def _make_moments(engine: Any, steps: int) -> None:
    """Adam's states of an engine that has not taken a step: the optimizer would make them with the first."""
    optimizer = engine.optimizer
    flat = getattr(optimizer, "fp32_partitioned_groups_flat", None)  # ZeRO-3, whose groups are empty between steps
    if flat is None:
        flat = [parameter for group in engine.basic_optimizer.param_groups for parameter in group["params"]]
    torch_adam = isinstance(engine.basic_optimizer, torch.optim.Adam)
    for parameter in flat:
        state = engine.basic_optimizer.state[parameter]
        state[STEP] = torch.tensor(float(steps)) if torch_adam else steps
        for moment in MOMENTS:
            state[moment] = torch.zeros_like(parameter, requires_grad=False)
    if hasattr(optimizer, "_hp_optimizer_states_linked"):  # ZeRO 1 and 2, and bfloat16 without ZeRO
        optimizer._hp_optimizer_states_linked = False
        optimizer._lazy_init_hp_params_optimizer_state()


@torch.no_grad()
def _set_whole(engine: Any, value: Tensor, states: Mapping[str, Tensor]) -> None:
    value.copy_(states[VALUE])
    for moment in MOMENTS:
        engine.basic_optimizer.state[value][moment].copy_(states[moment])


def _set_pieces(parameter: nn.Parameter, states: Mapping[str, Tensor]) -> None:
    from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

    safe_set_full_fp32_param(parameter, states[VALUE])
    for moment in MOMENTS:
        safe_set_full_optimizer_state(parameter, states[moment], moment)


@torch.no_grad()
def _set_parameter(parameter: nn.Parameter, value: Tensor) -> None:
    import deepspeed

    with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
        parameter.copy_(value)
