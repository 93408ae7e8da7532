"""What is trained follows from the data, the policy and the seed alone: not from how a step is cut up.

Each case takes three steps and is held against the definition in plain torch: one example at a time, without padding,
all logits. The ordinary run has a few cases that together use every setting; all of them, some five minutes:

    pytest -m exhaustive tests/stages/train/test_exactness.py
"""

from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nlft_ray.config import TrainConfig
from nlft_ray.models.adapters import outside_the_language_model, with_adapters
from nlft_ray.models.loading import load_model
from nlft_ray.stages.train.model import TokenKeys, use_keyed_dropout
from nlft_ray.stages.train.schedule import learning_rate, order_of
from tests.stages.train import support, workers

STEPS, TOLERANCE = 3, 1e-5
INSTRUCTION = [6 + number % 7 for number in range(18)]

CASES: dict[str, dict[str, Any]] = {
    "zero 0, one by one": {"zero_stage": 0},
    "zero 0, micro-batches of 8": {"zero_stage": 0, "micro_batch_size_per_worker": 8},
    "zero 1, padded pairs": {"zero_stage": 1, "micro_batch_size_per_worker": 2, "packed": False},
    "zero 2, pairs": {"zero_stage": 2, "micro_batch_size_per_worker": 2},
    "zero 3, padded": {"zero_stage": 3, "micro_batch_size_per_worker": 8, "packed": False},
    "zero 3, adapters": {"zero_stage": 3, "micro_batch_size_per_worker": 2, "lora": {}},
    "adapters that drop": {"micro_batch_size_per_worker": 8, "lora": {"dropout": 0.3}},
    "padded adapters that drop": {
        "zero_stage": 2,
        "micro_batch_size_per_worker": 2,
        "packed": False,
        "gradient_checkpointing": True,
        "lora": {"dropout": 0.3},
    },
    "normalised by weight": {"zero_stage": 2, "normalisation": "weight", "micro_batch_size_per_worker": 2},
    "the released policy, scaled": {"policy": "released", "micro_batch_size_per_worker": 8},
    "recomputed activations": {"gradient_checkpointing": True, "micro_batch_size_per_worker": 2},
}
ALIKE_ON_TWO = {
    *("zero 0, micro-batches of 8", "adapters that drop", "the released policy, scaled", "recomputed activations"),
}
"""Cases that two workers share out as they do others."""
SHAPES = [
    {
        "micro_batch_size_per_worker": micro,
        "zero_stage": stage,
        "packed": packed,
        "batch_size": batch_size,
        "lora": lora,
    }
    for micro, stage, packed, batch_size, lora in product(
        (1, 2, 8), (0, 1, 2, 3), (True, False), (4, 7), (None, {"targets": ["q_proj", "down_proj"]})
    )
]


@pytest.fixture(params=[1, 2], ids=["1 worker", "2 workers"])
def do(request: pytest.FixtureRequest, process_group: None) -> Callable[..., None]:
    """Do something on one worker, which is this process, or on two."""
    if request.param == 2:
        return request.getfixturevalue("two_workers").do
    return lambda work, *arguments: work(*arguments)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory, model: str) -> str:
    """11 rows whose prompts begin with the same instruction: a number that no size of a step or a batch divides."""
    rows = [
        row | {"input_ids": INSTRUCTION + row["input_ids"], "response_start": len(INSTRUCTION) + row["response_start"]}
        for row in support.scored_rows(11)
    ]
    return support.save_scored(tmp_path_factory.mktemp("table"), model, rows)


def defined(config: TrainConfig) -> list[dict[str, Any]]:
    """Loss, gradients and parameters of each step by their definition."""
    model = load_model(config.model)
    for part in outside_the_language_model(model):
        model.get_submodule(part).requires_grad_(False)
    if config.lora:
        model = with_adapters(model, config.model, config.lora, config.seed)
    keys = use_keyed_dropout(model, config.lora.dropout if config.lora else 0.0)
    model.train()
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    start = {name: parameter.detach().clone() for name, parameter in trained.items()}
    optimizer = torch.optim.AdamW(trained.values(), weight_decay=config.weight_decay)
    examples = support.weigh(config)
    order = order_of(config, len(examples))
    course: dict[str, Any] = {"schedule": config.schedule, "warmup_fraction": config.warmup_fraction}
    steps = []
    for step in range(STEPS):
        batch = [examples[index] for index in order.batch(step)]
        loss = loss_of(model, config, batch, keys, step)
        optimizer.zero_grad()
        loss.backward()
        gradients = {name: parameter.grad.clone() for name, parameter in trained.items() if parameter.grad is not None}
        torch.nn.utils.clip_grad_norm_(trained.values(), config.max_gradient_norm)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps=order.steps, highest=config.learning_rate, **course)
        optimizer.step()
        steps.append({"loss": loss.item(), "gradients": gradients, "start": start})
    steps[-1]["parameters"] = {name: parameter.detach() for name, parameter in trained.items()}
    return steps


def loss_of(model: Any, config: TrainConfig, batch: list[Any], keys: TokenKeys | None, step: int) -> Tensor:
    total = torch.zeros(())
    for example in batch:
        ids = torch.tensor(example.input_ids).long()
        if keys:
            keys.set({"input_ids": ids[None]}, config.seed, step)
        logp = model(ids[None]).logits[0, :-1].log_softmax(-1)
        logp = logp.gather(1, ids[1:, None])[example.response_start - 1 :, 0]
        likelihood, unlikelihood = torch.tensor(example.likelihood), torch.tensor(example.unlikelihood)
        losses = -likelihood * logp - unlikelihood * torch.log1p(-logp.exp())
        if config.normalisation == "weight":
            total = total + losses.sum() / sum(example.weight for example in batch)
        else:
            total = total + losses.mean() / len(batch)
    return total * config.policy.loss_scale


def check_steps(
    changes: dict[str, Any], do: Callable[..., None], model: str, table: str, folder: Path, steady: float = 0.0
) -> None:
    """`steady`: parameters are compared where each gradient is at least this share of their norm. Adam makes a whole
    step of what is only rounding, as the gradient of a bias of keys."""
    settings: dict[str, Any] = {"batch_size": 7, "learning_rate": 1e-3, "weight_decay": 0.01}
    config = support.train_config(model, table, folder, **(settings | changes))
    do(workers.save_steps, config, STEPS, folder / "steps.pt")
    found, wanted = torch.load(folder / "steps.pt"), defined(config)
    for number, (one, other) in enumerate(zip(found, wanted, strict=True)):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)
        size = torch.stack([gradient.norm() for gradient in other["gradients"].values()]).norm().item()
        assert one["norm"] == pytest.approx(size, rel=1e-4)
        assert_close(one["gradients"], other["gradients"], f"gradients of step {number + 1}", max(size, 1.0))
    if not steady:
        assert found[-1]["ways"] == (config.packed, True), "both shortcuts are taken, and padding where it is asked for"
    last, defined_last = found[-1]["parameters"], wanted[-1]["parameters"]
    if steady:
        for name in defined_last:
            for step, other in zip(found, wanted, strict=True):
                rounding = other["gradients"][name].abs() < steady * step["norm"]
                last[name][rounding] = defined_last[name][rounding]
    assert_close(last, defined_last, "parameters")
    moved = max((wanted[-1]["parameters"][name] - start).abs().max() for name, start in wanted[0]["start"].items())
    assert moved > 100 * TOLERANCE


def assert_close(found: dict[str, Tensor], wanted: dict[str, Tensor], what: str, scale: float = 1.0) -> None:
    assert found.keys() == wanted.keys()
    apart = {name: (found[name] - wanted[name]).abs().max().item() / scale for name in wanted}
    worst = max(apart, key=apart.__getitem__)
    assert apart[worst] <= TOLERANCE, f"{what}: {worst} is {apart[worst]:.2g} off"


@pytest.mark.usefixtures("one_thread", "process_group")
@pytest.mark.parametrize("case", CASES)
def test_three_steps_are_those_of_the_definition(case: str, model: str, table: str, tmp_path: Path) -> None:
    check_steps(CASES[case], lambda work, *arguments: work(*arguments), model, table, tmp_path)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=pytest.mark.exhaustive if case in ALIKE_ON_TWO else ()) for case in CASES]
)
def test_so_are_those_of_two_workers(
    case: str, two_workers: workers.Group, model: str, table: str, tmp_path: Path
) -> None:
    check_steps(CASES[case], two_workers.do, model, table, tmp_path)


@pytest.mark.exhaustive
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "-".join(str(value) for value in shape.values()))
def test_all_shapes_of_a_step(
    shape: dict[str, Any], do: Callable[..., None], model: str, table: str, tmp_path: Path
) -> None:
    check_steps(shape, do, model, table, tmp_path)


# DeepSpeed compiles its own Adam for this, which needs a C++ compiler and takes most of a minute once.
@pytest.mark.exhaustive
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(("stage", "what"), [(1, "optimizer"), (2, "optimizer"), (3, "optimizer"), (3, "param")])
@pytest.mark.parametrize("lora", [None, {"dropout": 0.3}], ids=["full", "lora"])
def test_offloading_changes_nothing(
    stage: int, what: str, lora: Any, do: Callable[..., None], model: str, table: str, tmp_path: Path
) -> None:
    offloaded = {f"offload_{part}": {"device": "cpu"} for part in {"optimizer", what}}
    shape = {"zero_stage": stage, "micro_batch_size_per_worker": 2, "lora": lora}
    check_steps(shape | {"deepspeed": {"zero_optimization": offloaded}}, do, model, table, tmp_path)


@pytest.mark.usefixtures("one_thread", "process_group")
@pytest.mark.parametrize("stage", [1, 2, 3])  # 0 is 1 here: test_deepspeed_config.py, and bit for bit in test_loop.py
def test_bfloat16_adds_up_and_learns_in_float32(stage: int, model: str, table: str, tmp_path: Path) -> None:
    """Gradients of micro-batches, and parameters, have more digits than bfloat16 does."""
    config = support.train_config(
        model, table, tmp_path, zero_stage=stage, model={"path": model, "dtype": "bfloat16"}, batch_size=7
    )
    workers.save_steps(config, STEPS, tmp_path / "steps.pt")
    found = torch.load(tmp_path / "steps.pt")
    exact = defined(config.model_copy(update={"model": config.model.model_copy(update={"dtype": "float32"})}))
    for name, gradient in exact[0]["gradients"].items():
        measured = found[0]["gradients"][name]
        assert (measured - gradient).norm() < 0.05 * gradient.norm()
        assert not torch.equal(measured, measured.bfloat16().float())
    for parameter in found[-1]["parameters"].values():
        assert parameter.dtype == torch.float32
        assert not torch.equal(parameter, parameter.bfloat16().float())


def test_logits_are_asked_for_only_where_a_token_has_a_weight(model: str, scored: str, tmp_path: Path) -> None:
    config = support.train_config(model, scored, tmp_path)
    kept = workers.count_kept(config)
    examples = support.weigh(config)
    assert kept == [int(example.weighted.sum()) for example in examples]
    assert sum(kept) < sum(example.n for example in examples)
