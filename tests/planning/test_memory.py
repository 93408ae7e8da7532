"""The formulas: against what autograd really keeps, against the figures of the ZeRO paper, and among themselves."""

from dataclasses import replace
from typing import Any

import peft
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from nlft_ray.models.attention import attend_by_segments
from nlft_ray.planning.memory import (
    Pass,
    TrainingSetup,
    layer_activations,
    scoring_memory,
    training_memory,
    training_states,
)
from nlft_ray.planning.shape import Adapters, Shape
from nlft_ray.stages.train.examples import packed_inputs

GB = 10**9
SHAPE = Shape(
    layers=2,
    width=64,
    mlp_width=160,
    heads=4,
    query_width=64,
    key_width=32,
    gated=True,
    vocabulary=100,
    positions=512,
    parameters=100_000,
    layer_parameters=40_000,
    largest_parameter=6400,
)
PLAIN = TrainingSetup(None, zero_stage=0, workers=1, gradient_checkpointing=False, micro_steps=1, on_gpu=True)
RANK = 8


def saved_bytes(layers: int, dtype: torch.dtype, *, adapters: bool) -> int:
    """Bytes that autograd keeps of a forward pass of 64 tokens, weights apart."""
    model: Any = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=SHAPE.vocabulary,
            hidden_size=SHAPE.width,
            intermediate_size=SHAPE.mlp_width,
            num_hidden_layers=layers,
            num_attention_heads=SHAPE.heads,
            num_key_value_heads=2,
        )
    )
    model.to(dtype)
    assert attend_by_segments(model)
    if adapters:
        settings = peft.LoraConfig(task_type="CAUSAL_LM", r=RANK, target_modules="all-linear")
        model = peft.get_peft_model(model, settings, autocast_adapter_dtype=False)
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    storages: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    inputs, _ = packed_inputs([[1] * 32, [2] * 32], shared=0)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(**inputs, use_cache=False, logits_to_keep=1)
    return sum(storage.nbytes() for place, storage in storages.items() if place not in weights)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("adapters", [False, True])
def test_a_layer_keeps_what_autograd_keeps(dtype: torch.dtype, adapters: bool) -> None:
    found = saved_bytes(3, dtype, adapters=adapters) - saved_bytes(2, dtype, adapters=adapters)
    of_rank = Adapters(parameters=0, activations=7 * RANK)
    training = replace(PLAIN, adapters=of_rank if adapters else None)
    assert layer_activations(SHAPE, Pass(64, 1, dtype.itemsize), training) * 64 == found


@pytest.mark.parametrize(("stage", "expected"), [(0, 120), (1, 31.4), (2, 16.6), (3, 1.9)])
def test_states_are_those_of_the_zero_papers_first_figure(stage: int, expected: float) -> None:
    shape = replace(SHAPE, parameters=7_500_000_000)
    states = training_states(shape, Pass(1, 1, 2), replace(PLAIN, zero_stage=stage, workers=64))
    assert (states.weights + states.gradients + states.optimizer) / GB == pytest.approx(expected, rel=0.02)


numbers = st.integers(1, 8)


@given(
    tokens=st.integers(1, 5000),
    stage=st.integers(0, 3),
    workers=numbers,
    micro_steps=numbers,
    checkpointing=st.booleans(),
    adapters=st.none() | st.builds(Adapters, st.integers(1, 50_000), st.integers(1, 500)),
    number_bytes=st.sampled_from([2, 4]),
)
def test_more_work_never_needs_less(
    tokens: int,
    stage: int,
    workers: int,
    micro_steps: int,
    checkpointing: bool,
    adapters: Adapters | None,
    number_bytes: int,
) -> None:
    training = TrainingSetup(adapters, stage, workers, checkpointing, micro_steps, on_gpu=False)
    batch = Pass(tokens, tokens // 2, number_bytes)
    total = training_memory(SHAPE, batch, training).total
    assert total >= training_memory(SHAPE, batch, replace(training, micro_steps=1)).total
    assert total <= training_memory(SHAPE, replace(batch, tokens=tokens + 1), training).total
    assert total <= training_memory(SHAPE, replace(batch, responses=tokens), training).total
    assert total >= training_memory(SHAPE, batch, replace(training, workers=workers + 1)).total
    smaller = scoring_memory(SHAPE, batch, longest_response=9, stored_tokens=0, on_gpu=False)
    larger = scoring_memory(SHAPE, replace(batch, tokens=tokens + 1), longest_response=9, stored_tokens=1, on_gpu=True)
    assert smaller.total <= larger.total


def test_checkpointing_pays_with_several_layers() -> None:
    deep, batch = replace(SHAPE, layers=32), Pass(4096, 64, 2)
    kept, again = (training_memory(deep, batch, replace(PLAIN, gradient_checkpointing=on)) for on in (False, True))
    assert again.activations < kept.activations / 5
