"""The loss on rows that are not trained on."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from nlft_ray.errors import UserError
from nlft_ray.stages.train.job import train
from tests.stages.train import support, workers

pytestmark = pytest.mark.usefixtures("process_group", "one_thread")


@pytest.fixture(scope="module")
def other_rows() -> list[dict[str, Any]]:
    generator = np.random.default_rng(7)
    return [support.scored_row(100 + number, correct=number % 2 == 0, generator=generator) for number in range(7)]


@pytest.fixture(scope="module")
def held_out(tmp_path_factory: pytest.TempPathFactory, model: str, other_rows: list[dict[str, Any]]) -> str:
    return support.save_scored(tmp_path_factory.mktemp("held-out"), model, other_rows)


def test_it_is_the_loss_of_the_model_after_the_step_and_the_best_is_noted(
    model: str,
    scored: str,
    held_out: str,
    other_rows: list[dict[str, Any]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "out"
    config = support.train_config(model, scored, output, policy="sft", held_out=held_out, epochs=3, backend="inline")
    manifest = train(config).manifest
    measured = {line["step"]: line["held_out_loss"] for line in support.record(output)}
    assert [value is not None for value in measured.values()] == [False, False, True] * 3, "once an epoch"
    trained = AutoModelForCausalLM.from_pretrained(output / "weights")
    losses = []
    for row in other_rows:
        ids = torch.tensor(row["input_ids"][: row["response_start"]] + row["standard_ids"])
        logits = trained(ids[None]).logits[0, row["response_start"] - 1 : -1]
        losses.append(cross_entropy(logits, ids[row["response_start"] :]).item())
    assert measured[9] == pytest.approx(sum(losses) / len(losses), rel=1e-5)

    best = min((step for step, value in measured.items() if value is not None), key=lambda step: measured[step])
    counts = manifest.counts
    assert (counts["best_held_out_step"], counts["best_held_out_loss"]) == (best, measured[best])
    assert f"lowest after step {best}" in capsys.readouterr().err
    assert manifest.identity.config["held_out"] != held_out, "what stands in the table counts, not where it lies"


def test_measuring_changes_nothing_and_workers_agree(
    model: str, scored: str, held_out: str, tmp_path: Path, two_workers: workers.Group
) -> None:
    settings: dict[str, Any] = {"lora": {"dropout": 0.3}, "batch_size": 3, "micro_batch_size_per_worker": 2}
    measuring = settings | {"held_out": held_out, "held_out_every_steps": 2}
    workers.train_in(support.train_config(model, scored, tmp_path / "plain", **settings), tmp_path / "c")
    workers.train_in(support.train_config(model, scored, tmp_path / "measured", **measuring), tmp_path / "d")
    plain, measured = (support.record(tmp_path / name) for name in ("plain", "measured"))
    assert [line["loss"] for line in plain] == [line["loss"] for line in measured]
    assert [line["held_out_loss"] is not None for line in measured] == [False, True] * 4
    for stage in (2, 3):
        config = support.train_config(model, scored, tmp_path / str(stage), **measuring, zero_stage=stage)
        two_workers.do(workers.train_in, config, tmp_path / f"checkpoints-{stage}")
        first = support.record(tmp_path / str(stage))[1]["held_out_loss"]
        assert first == pytest.approx(measured[1]["held_out_loss"], rel=1e-3)  # Adam magnifies what rounding does


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"held_out": "SCORED"}, "held_out: .* is the table that is trained on"),
        ({"held_out": "MODEL"}, "held_out: .* has no manifest.json"),
        ({"held_out_every_steps": 3}, "held_out_every_steps needs `held_out`"),
    ],
    ids=str,
)
def test_what_cannot_be_held_out_is_refused(
    changes: dict[str, Any], message: str, model: str, scored: str, tmp_path: Path
) -> None:
    folders = {"SCORED": scored, "MODEL": model}
    changes = {key: folders.get(value, value) for key, value in changes.items()}
    with pytest.raises(UserError, match=message):
        train(support.train_config(model, scored, tmp_path / "out", backend="inline", **changes))
