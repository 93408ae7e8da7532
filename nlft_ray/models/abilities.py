"""The abilities of a model beyond a plain forward pass.

Each ability is tried on a few tokens: models scale or cap their logits, attend through windows, keep recurrent states
or mix texts in places that no configuration names.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from nlft_ray.models.attention import attend_by_segments, attends_by_segments, body, keeps_keys_and_values
from nlft_ray.models.packing import PackedTexts, moved, to_device
from nlft_ray.models.prefix_states import PrefixStates

TRIAL_PROMPT = [number % 5 for number in range(1, 20)]
"""Ids that every vocabulary has, and enough of them to be worth sharing (`core.prefix`)."""
TRIAL_RESPONSES = [[1, 3], [2, 4, 1]]
"""Two ends of the prompt, of different lengths."""
LONGEST_UNDER_A_MASK = 4096
"""Tokens of a text up to which one mask of all tokens is fine. Longer ones run alone, plainly causal, without any."""


def equal_but_for_rounding(values: Tensor, reference: Tensor, dtype: torch.dtype) -> bool:
    """Whether two results of the same computation in `dtype` agree: to the root of its precision, of the largest."""
    tolerance = torch.finfo(dtype).eps ** 0.5 * reference.abs().max()
    return bool((values - reference).abs().max() <= tolerance)


@torch.inference_mode()
def stores_prefixes(model: PreTrainedModel) -> bool:
    """Whether what texts begin with can be run once and read by all that follows it, with the same result."""
    if not keeps_keys_and_values(model.config):
        return False
    stored = PrefixStates(model).get(TRIAL_PROMPT)
    if stored is None or stored.get_seq_length() != len(TRIAL_PROMPT):
        return False  # it keeps its states elsewhere
    responses = torch.tensor([[*response][:2] for response in TRIAL_RESPONSES], device=model.device)
    after = model(responses, past_key_values=stored, use_cache=True).logits[:, -1].float()
    alone = _last_logits(model, [[*TRIAL_PROMPT, *response] for response in responses.tolist()])
    return equal_but_for_rounding(after, alone, model.dtype)


@torch.inference_mode()
def start_packing(model: PreTrainedModel) -> bool:
    """Make the model read packed texts if it gives the same for two that share a prompt as for each alone.

    Where it does not, False, and its attention is what it was.
    """
    alone = _last_logits(model, [[*TRIAL_PROMPT, *response] for response in TRIAL_RESPONSES])
    undo = attend_by_segments(model)
    if undo is None:
        return False
    packed, ends = PackedTexts(), []
    prompt = packed.append(TRIAL_PROMPT, packed.beginning)
    for response in TRIAL_RESPONSES:
        packed.append(response, prompt)
        ends.append(len(packed.ids) - 1)
    inputs: dict[str, Any] = moved(packed.inputs(), model.device)
    try:
        together = model(**inputs).logits[0, ends].float()
        if equal_but_for_rounding(together, alone, model.dtype):
            return True
    except (TypeError, ValueError):  # it makes something of its own from a mask (ALiBi), or takes no such argument
        pass
    undo()
    return False


def _last_logits(model: PreTrainedModel, texts: Sequence[Sequence[int]]) -> Tensor:
    """(len(texts), V) float32: what the model expects after each text, which it reads alone."""
    inputs = [torch.tensor([list(ids)], device=model.device) for ids in texts]
    return torch.stack([model(ids, use_cache=False).logits[0, -1] for ids in inputs]).float()


def longest_together(model: PreTrainedModel) -> int | None:
    """Tokens of a text up to which it may run beside others; None where there is no such limit.

    Called once the model packs, or is known not to.
    """
    limits = [longest_unswitched(model.config), None if attends_by_segments(model) else LONGEST_UNDER_A_MASK]
    return min((limit for limit in limits if limit is not None), default=None)


def longest_unswitched(config: PreTrainedConfig) -> int | None:
    """Tokens of a text up to which its rotary embeddings are those of every shorter one; None where that is always so.

    LongRoPE takes other frequencies for all positions of a pass as soon as one text in it is longer.
    """
    rope = getattr(config.get_text_config(), "rope_parameters", None) or {}
    limits = [
        int(settings["original_max_position_embeddings"])
        for settings in (rope, *rope.values())  # those of all layers, or those of each kind of layers
        if isinstance(settings, dict) and settings.get("rope_type") == "longrope"
    ]
    return min(limits, default=None)


@torch.inference_mode()
def only_the_head_follows(model: PreTrainedModel) -> bool:
    """Whether a model's logits are its LM head of the last hidden states: some scale or cap them."""
    inputs = {"input_ids": torch.tensor([TRIAL_PROMPT[:2]], device=model.device)}
    hidden = body(model)(**inputs).last_hidden_state
    read, _ = hidden_and_logits(model, inputs)
    return torch.equal(read, hidden.to(read.device)) and gives_logits_of_head(
        model, model.get_output_embeddings(), model.device
    )


@torch.no_grad()
def gives_logits_of_head(model: Callable[..., Any], head: torch.nn.Module, device: torch.device) -> bool:
    """Whether a model's logits are what its LM head gives, in every type of numbers.

    Small logits would hide a cap behind the rounding of bfloat16, so the head gives large ones here, whatever it reads.
    """
    given: list[Tensor] = []

    def replaced(_head: torch.nn.Module, _arguments: Any, output: Tensor) -> Tensor:
        given.append(torch.linspace(-100, 100, output.numel(), device=output.device).view_as(output).to(output.dtype))
        return given[-1]

    hook = head.register_forward_hook(replaced)
    try:
        logits = model(input_ids=torch.tensor([TRIAL_PROMPT[:2]], device=device)).logits
    finally:
        hook.remove()
    return torch.equal(logits.float(), given[-1].to(logits.device).float())


def hidden_and_logits(
    model: PreTrainedModel, inputs: dict[str, Any], positions: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The hidden states that the LM head reads (B, T, d), and the model's own logits (B, T, V).

    With `positions`, (N,) int64 on the host, row after row of B · T: of these alone, (1, N, d) and (1, N, V). No other
    logits are ever made.
    """
    head_inputs: list[Tensor] = []

    def read(_head: torch.nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden = arguments[0]
        if positions is not None:
            hidden = hidden.flatten(0, 1).index_select(0, to_device(positions, hidden.device))[None]
        head_inputs.append(hidden)
        return (hidden, *arguments[1:])

    hook = model.get_output_embeddings().register_forward_pre_hook(read)
    try:
        logits = model(**inputs).logits
    finally:
        hook.remove()
    return head_inputs[-1], logits
