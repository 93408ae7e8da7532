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

    for name, parameter in trained_parameters(engine.module).items():
        if _is_whole(parameter):
            states = engine.basic_optimizer.state[parameter]
            yield name, {VALUE: parameter.detach(), **{moment: states[moment] for moment in MOMENTS}}
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
    for name, parameter in trained_parameters(engine.module).items():
        _set(engine, parameter, read(name))


def _is_whole(parameter: nn.Parameter) -> bool:
    """Whether the optimizer works on the parameter itself, as it does without ZeRO in float32."""
    return not hasattr(parameter, "ds_id") and not hasattr(parameter, "_hp_mapping")


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
def _set(engine: Any, parameter: nn.Parameter, states: Mapping[str, Tensor]) -> None:
    import deepspeed
    from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

    states = {kind: tensor.to(engine.device) for kind, tensor in states.items()}
    if _is_whole(parameter):
        parameter.copy_(states[VALUE])
        for moment in MOMENTS:
            engine.basic_optimizer.state[parameter][moment].copy_(states[moment])
        return
    safe_set_full_fp32_param(parameter, states[VALUE])
    for moment in MOMENTS:
        safe_set_full_optimizer_state(parameter, states[moment], moment)
    # DeepSpeed sets the optimizer's float32 value alone. The one that the model computes with is another tensor.
    with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
        parameter.copy_(states[VALUE])
