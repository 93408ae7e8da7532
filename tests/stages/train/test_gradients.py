"""The gradient of a step is that of the definition, however the step is cut into micro-batches and workers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from nlft_ray.config import TrainConfig
from nlft_ray.stages.train.loop import load_examples
from nlft_ray.stages.train.order import Order
from tests.stages.train import support, workers

BATCH_SIZE = 7  # of 11 examples; neither 2 workers nor micro-batches of 2 or 8 divide it
CASES: dict[str, dict[str, Any]] = {
    **{
        f"zero {stage}, micro-batches of {micro}": {"zero_stage": stage, "micro_batch_size_per_worker": micro}
        for stage in (0, 2)
        for micro in (1, 2, 8)
    },
    "zero 1": {"zero_stage": 1},
    "zero 3": {"zero_stage": 3},
    "normalised by weight": {"zero_stage": 2, "normalisation": "weight", "micro_batch_size_per_worker": 2},
    "the released policy, scaled": {"policy": "released"},
    "recomputed activations": {"gradient_checkpointing": True},
}


@pytest.fixture(params=[1, 2], ids=["1 worker", "2 workers"])
def do(request: pytest.FixtureRequest, process_group: None) -> Callable[..., None]:
    """Do something on one worker, which is this process, or on two."""
    if request.param == 2:
        return request.getfixturevalue("two_workers").do
    return lambda work, *arguments: work(*arguments)


def reference(config: TrainConfig) -> tuple[float, dict[str, Tensor]]:
    """The loss by its definition: one example at a time, without padding, every logit, plain log-softmax."""
    model = AutoModelForCausalLM.from_pretrained(config.model.path, dtype=torch.float32)
    examples = load_examples(config)
    batch = [examples[index] for index in Order(len(examples), BATCH_SIZE, config.epochs, config.seed).batch(0)]
    total = torch.zeros(())
    for example in batch:
        ids = torch.from_numpy(example.input_ids).long()
        logp = model(ids[None]).logits[0, :-1].log_softmax(-1)
        logp = logp.gather(1, ids[1:, None])[example.response_start - 1 :, 0]
        likelihood, unlikelihood = torch.from_numpy(example.likelihood), torch.from_numpy(example.unlikelihood)
        losses = -likelihood * logp - unlikelihood * torch.log1p(-logp.exp())
        if config.normalisation == "weight":
            total = total + losses.sum() / sum(example.weight for example in batch)
        else:
            total = total + losses.mean() / len(batch)
    total = total * config.policy.loss_scale
    total.backward()
    return total.item(), {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("case", CASES)
def test_the_gradient_is_that_of_the_definition(
    case: str, do: Callable[..., None], model: str, scored: str, tmp_path: Path
) -> None:
    config = support.train_config(model, scored, tmp_path, batch_size=BATCH_SIZE, **CASES[case])
    do(workers.save_gradients, config, tmp_path / "measured.pt")
    measured = torch.load(tmp_path / "measured.pt")
    loss, gradients = reference(config)
    assert measured["loss"] == pytest.approx(loss, rel=1e-5)
    assert measured["gradients"].keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(measured["gradients"][name], gradient, rtol=1e-4, atol=1e-5)
    norm = torch.stack([gradient.norm() for gradient in gradients.values()]).norm().item()
    assert measured["norm"] == pytest.approx(norm, rel=1e-4)


def test_logits_are_asked_for_only_where_a_token_has_a_weight(model: str, scored: str, tmp_path: Path) -> None:
    config = support.train_config(model, scored, tmp_path)
    kept = workers.count_kept(config)
    examples = load_examples(config)
    assert kept == [int(example.weighted.sum()) for example in examples]
    assert sum(kept) < sum(example.n for example in examples)
