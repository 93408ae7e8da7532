"""The loop in this process: real DeepSpeed engines, one worker, no Ray.

The ordinary run writes the weights of some trainings. All kinds under every ZeRO stage:

    pytest -m exhaustive tests/stages/train/test_loop.py
"""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from nlft_ray.config import TrainConfig
from nlft_ray.errors import UserError
from nlft_ray.stages.train import loop
from nlft_ray.stages.train.schedule import Order
from nlft_ray.tables.scored import facts_of
from tests.stages.train import support, workers

IDS = torch.arange(6, 26)[None]


pytestmark = pytest.mark.usefixtures("process_group", "one_thread")


def weights_of(config: TrainConfig) -> dict[str, Tensor]:
    (file,) = (Path(config.output) / "weights").glob("*.safetensors")
    tensors = load_file(file)
    assert tensors
    assert all(tensor.numel() for tensor in tensors.values())
    return tensors


def trained(config: TrainConfig) -> dict[str, Tensor]:
    support.train_alone(config, support.StoppingCheckpoints(Path(config.output) / "checkpoints"))
    return weights_of(config)


def assert_same(left: dict[str, Tensor], right: dict[str, Tensor], **tolerance: Any) -> None:
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        torch.testing.assert_close(tensor, right[name], **({"rtol": 0, "atol": 0} | tolerance))


@pytest.mark.parametrize(
    "changes",
    [{"zero_stage": 0, "lora": {"dropout": 0.3}}, {"zero_stage": 2}, {"zero_stage": 3, "lora": {"dropout": 0.3}}],
    ids=str,
)
def test_a_stopped_training_ends_where_an_undisturbed_one_does(
    changes: dict[str, Any], model: str, scored: str, tmp_path: Path
) -> None:
    changes = changes | {"checkpoint_every_steps": 2, "epochs": 3}
    whole = trained(support.train_config(model, scored, tmp_path / "whole", **changes))
    config = support.train_config(model, scored, tmp_path / "stopped", **changes)
    checkpoints = tmp_path / "checkpoints"
    with pytest.raises(support.Stopped):
        support.train_alone(config, support.StoppingCheckpoints(checkpoints, stop_after=4))
    (tmp_path / "stopped" / "metrics.jsonl").open("a").write('{"step": 5, ')
    resumed = support.StoppingCheckpoints(checkpoints)
    support.train_alone(config, resumed)
    assert resumed.saved == [6, 8]
    assert_same(whole, weights_of(config))
    runs = [support.record(tmp_path / name) for name in ("whole", "stopped")]
    assert [line["step"] for line in runs[1]] == list(range(1, 10))
    for one, other in zip(*runs, strict=True):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}


def test_two_workers_resume_too(model: str, scored: str, tmp_path: Path, two_workers: workers.Group) -> None:
    def config(name: str) -> TrainConfig:
        return support.train_config(
            model, scored, tmp_path / name, zero_stage=2, batch_size=3, checkpoint_every_steps=2
        )

    checkpoints = tmp_path / "checkpoints"
    two_workers.do(workers.train_in, config("whole"), tmp_path / "others")
    two_workers.do(workers.train_in, config("stopped"), checkpoints, 4)
    two_workers.do(workers.train_in, config("stopped"), checkpoints)
    assert_same(weights_of(config("whole")), weights_of(config("stopped")))
    alone = trained(support.train_config(model, scored, tmp_path / "alone", batch_size=3))
    assert_same(
        alone, weights_of(config("whole")), rtol=0, atol=2e-3
    )  # Adam magnifies what rounding does to tiny gradients


def test_the_loss_is_recorded_by_part(model: str, scored: str, tmp_path: Path) -> None:
    config = support.train_config(model, scored, tmp_path, epochs=1, batch_size=11)
    trained(config)
    (line,) = support.record(tmp_path)
    policy: Any = config.policy
    base = AutoModelForCausalLM.from_pretrained(model)
    anchor, raised, lowered = 0.0, 0.0, 0.0
    for row in support.scored_rows():
        ids = torch.tensor(row["input_ids"])
        logits = base(ids[None]).logits[0, row["response_start"] - 1 : -1]
        losses = cross_entropy(logits, ids[row["response_start"] :], reduction="none").double()
        weights = config.policy.weigh(facts_of(row))
        sign, weight = torch.from_numpy(weights.sign), torch.from_numpy(weights.weight)
        anchor += (losses * policy.anchor).mean().item() if row["verdict"] == "correct" else 0.0
        raised += (losses * weight * (sign > 0)).mean().item()
        lowered += (-torch.log1p(-torch.exp(-losses)) * weight * (sign < 0)).mean().item()
    expected = {"loss_anchor": anchor, "loss_likelihood": raised, "loss_unlikelihood": lowered}
    expected["loss"] = sum(expected.values())
    assert min(expected.values()) > 0
    for name, value in expected.items():
        assert line[name] == pytest.approx(value / 11, rel=1e-5)


def test_sft_is_plain_cross_entropy_and_the_loss_falls(model: str, scored: str, tmp_path: Path) -> None:
    config = support.train_config(model, scored, tmp_path, policy="sft", epochs=20)
    trained(config)
    rows = sorted(support.scored_rows(), key=lambda row: row["id"])
    base = AutoModelForCausalLM.from_pretrained(model)
    losses = []
    for index in Order(len(rows), config.batch_size, 1, config.seed).batch(0):
        row = rows[index]
        ids = torch.tensor(row["input_ids"][: row["response_start"]] + row["standard_ids"])
        logits = base(ids[None]).logits[0, row["response_start"] - 1 : -1]
        losses.append(cross_entropy(logits, ids[row["response_start"] :]).item())
    recorded = [line["loss"] for line in support.record(tmp_path)]
    assert recorded[0] == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert sum(recorded[-3:]) < sum(recorded[:3]) / 4


@pytest.mark.parametrize("zero_stage", [0, 2])
def test_adapters_learn_on_a_quantised_model(zero_stage: int, model: str, scored: str, tmp_path: Path) -> None:
    quantised = {"path": model, "quantization": {"quant_method": "bitsandbytes", "load_in_8bit": True}}
    trained(
        support.train_config(
            model, scored, tmp_path, model=quantised, lora={}, policy="sft", epochs=20, zero_stage=zero_stage
        )
    )
    losses = [line["loss"] for line in support.record(tmp_path)]
    assert sum(losses[-3:]) < sum(losses[:3]) / 2
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), tmp_path / "weights")
    plain = AutoModelForCausalLM.from_pretrained(model)
    assert (adapted.eval()(IDS).logits - plain(IDS).logits).abs().max() > 0.01


ADAPTERS = {"targets": ["q_proj", "up_proj"]}
WRITTEN = list(itertools.product((None, ADAPTERS), (True, False), (0, 1, 2, 3)))
"""What is trained, whether the embeddings are tied, and the ZeRO stage. The ordinary run writes some, in each stage."""
SOME_WRITTEN = [
    *((None, True, 0), (None, False, 1), (None, True, 2), (None, True, 3), (None, False, 3)),
    *((ADAPTERS, True, 1), (ADAPTERS, False, 2), (ADAPTERS, True, 3)),
]


@pytest.mark.parametrize(
    ("lora", "tied", "zero_stage"),
    [pytest.param(*case, marks=() if case in SOME_WRITTEN else pytest.mark.exhaustive) for case in WRITTEN],
    ids=str,
)
def test_the_weights_give_the_trained_logits(
    lora: Any, tied: bool, zero_stage: int, scored: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = support.save_model(tmp_path / "model", tied=tied)
    config = support.train_config(model, scored, tmp_path / "out", zero_stage=zero_stage, lora=lora)
    logits: list[Tensor] = []
    write = loop.write_weights

    def write_and_look(trained: Any, *arguments: Any) -> None:
        with torch.no_grad():
            trained.eval()
            logits.append(trained(IDS).logits)
        write(trained, *arguments)

    monkeypatch.setattr(loop, "write_weights", write_and_look)
    trained(config)
    folder = tmp_path / "out" / "weights"
    base = AutoModelForCausalLM.from_pretrained(model)
    untrained = base(IDS).logits
    loaded = PeftModel.from_pretrained(base, folder) if lora else AutoModelForCausalLM.from_pretrained(folder)
    torch.testing.assert_close(loaded.eval()(IDS).logits, logits[0], rtol=1e-5, atol=1e-5)
    assert (untrained - logits[0]).abs().max() > 0.01
    if lora:
        assert loaded.peft_config["default"].base_model_name_or_path == model


def adapters_config(model: str, scored: str, output: Path, dtype: str, **changes: Any) -> TrainConfig:
    return support.train_config(
        model, scored, output, model={"path": model, "dtype": dtype}, lora={}, batch_size=3, **changes
    )


@pytest.fixture(scope="module")
def alone(
    tmp_path_factory: pytest.TempPathFactory, model: str, scored: str, process_group: None
) -> dict[str, TrainConfig]:
    """Trainings of adapters by one worker without ZeRO, by the model's type."""
    folder = tmp_path_factory.mktemp("alone")
    configs = {dtype: adapters_config(model, scored, folder / dtype, dtype) for dtype in ("float32", "bfloat16")}
    for config in configs.values():
        trained(config)
    return configs


@pytest.mark.parametrize(
    ("zero_stage", "dtype"), [(0, "float32"), (1, "float32"), (2, "float32"), (3, "float32"), (3, "bfloat16")]
)
def test_adapters_of_two_workers_are_whole(
    zero_stage: int,
    dtype: str,
    model: str,
    scored: str,
    tmp_path: Path,
    alone: dict[str, TrainConfig],
    two_workers: workers.Group,
) -> None:
    def logits(config: TrainConfig) -> Tensor:
        base = AutoModelForCausalLM.from_pretrained(model, dtype=dtype)
        return PeftModel.from_pretrained(base, Path(config.output) / "weights").eval()(IDS).logits.float()

    spread = adapters_config(model, scored, tmp_path / "spread", dtype, zero_stage=zero_stage)
    two_workers.do(workers.train_in, spread, tmp_path / "checkpoints")
    assert weights_of(spread).keys() == weights_of(alone[dtype]).keys()
    untrained = AutoModelForCausalLM.from_pretrained(model, dtype=dtype)(IDS).logits.float()
    learned = logits(alone[dtype]) - untrained
    assert (logits(spread) - logits(alone[dtype])).norm() < (0.01 if dtype == "float32" else 0.2) * learned.norm()
    assert learned.norm() > 1


def test_bfloat16_trains_alike_with_and_without_zero(model: str, scored: str, tmp_path: Path) -> None:
    """DeepSpeed's own optimizer for bfloat16 without ZeRO begins with a step that is too short."""
    results = [
        trained(
            support.train_config(
                model,
                scored,
                tmp_path / str(stage),
                zero_stage=stage,
                model={"path": model, "dtype": "bfloat16"},
                batch_size=11,
                micro_batch_size_per_worker=11,
                epochs=1,
            )
        )
        for stage in (0, 1)
    ]
    assert {tensor.dtype for tensor in results[0].values()} == {torch.bfloat16}
    assert_same(*results)


def test_a_loss_that_is_not_finite_names_the_rows(model: str, scored: str, tmp_path: Path) -> None:
    config = support.train_config(
        model, scored, tmp_path, learning_rate=1e30, max_gradient_norm=0, micro_batch_size_per_worker=4
    )
    with pytest.raises(UserError, match=r"loss of step \d is not a finite number.*row-0\d\d, row-0\d\d"):
        trained(config)


def test_targets_that_are_not_in_the_model_are_the_users_to_mend(model: str, scored: str, tmp_path: Path) -> None:
    config = support.train_config(model, scored, tmp_path, lora={"targets": ["c_attn"]})
    with pytest.raises(UserError, match=r"lora.targets.*c_attn.*q_proj"):
        trained(config)
