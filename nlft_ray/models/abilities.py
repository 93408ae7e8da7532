"""What a model can do beyond a plain forward pass.

Each ability is tried on a few tokens: models scale or cap their logits, attend through windows, keep recurrent states
or mix texts in places that no configuration names.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from nlft_ray.models.packing import PackedTexts, attend_by_segments, keeps_every_token, moved

TRIAL_PROMPT = [number % 5 for number in range(1, 20)]
"""Ids that every vocabulary has, and enough of them to be worth sharing (`core.prefix`)."""
TRIAL_RESPONSES = [[1, 3], [2, 4, 1]]
"""Two ends of the prompt, of different lengths."""


def equal_but_for_rounding(values: Tensor, reference: Tensor, dtype: torch.dtype) -> bool:
    """Whether two results of the same computation in `dtype` agree: to the root of its precision, of the largest."""
    tolerance = torch.finfo(dtype).eps ** 0.5 * reference.abs().max()
    return bool((values - reference).abs().max() <= tolerance)


@torch.inference_mode()
def stores_prefixes(model: PreTrainedModel) -> bool:
    """Whether what texts begin with can be run once and read by all that follows it."""
    input_ids = torch.tensor([TRIAL_PROMPT], device=model.device)
    return keeps_every_token(model.base_model(input_ids=input_ids, use_cache=True).get("past_key_values"))


@torch.inference_mode()
def start_packing(model: PreTrainedModel) -> bool:
    """Make the model read packed texts if it gives the same for two that share a prompt as for each alone.

    Where it does not, False, and its attention is what it was.
    """
    configured = model.config._attn_implementation
    texts = [[*TRIAL_PROMPT, *response] for response in TRIAL_RESPONSES]
    alone = torch.stack([model(torch.tensor([ids], device=model.device)).logits[0, -1] for ids in texts]).float()
    if not attend_by_segments(model):
        return False
    packed, ends = PackedTexts(), []
    prompt = packed.append(TRIAL_PROMPT, packed.beginning)
    for response in TRIAL_RESPONSES:
        packed.append(response, prompt)
        ends.append(len(packed.ids) - 1)
    inputs: dict[str, Any] = moved(packed.inputs(), model.device)
    together = model(**inputs).logits[0, ends].float()
    if equal_but_for_rounding(together, alone, model.dtype):
        return True
    model.set_attn_implementation(configured)
    return False


@torch.inference_mode()
def only_the_head_follows(model: PreTrainedModel) -> bool:
    """Whether a model's logits are its LM head of the last hidden states, bit for bit: some scale or cap them."""
    inputs = {"input_ids": torch.tensor([TRIAL_PROMPT[:2]], device=model.device)}
    hidden = model.base_model(**inputs).last_hidden_state
    return torch.equal(model.get_output_embeddings()(hidden), hidden_and_logits(model, inputs)[1])


def hidden_and_logits(model: PreTrainedModel, inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """What the LM head reads (B, T, d), and the model's own logits (B, T, V)."""
    head_inputs: list[Tensor] = []
    hook = model.get_output_embeddings().register_forward_pre_hook(
        lambda _module, arguments: head_inputs.append(arguments[0])
    )
    try:
        logits = model(**inputs).logits
    finally:
        hook.remove()
    return head_inputs[-1], logits
