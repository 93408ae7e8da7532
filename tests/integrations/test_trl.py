"""TRL's trainer on our weights: the gradients are those of the definition."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, TrainerCallback
from trl import SFTConfig, SFTTrainer

import nlft_ray
from nlft_ray.config import WeightsConfig
from nlft_ray.integrations.trl import TokenWeightCollator, TokenWeightLoss
from nlft_ray.storage.folder import Folder
from nlft_ray.tables.shards import read_rows
from tests.stages.train.support import save_model, save_scored


@pytest.fixture(autouse=True)
def not_one_of_several(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other tests set what makes accelerate look for other processes."""
    monkeypatch.delenv("LOCAL_RANK", raising=False)


class Gradients(TrainerCallback):
    """Keeps the gradients of the first optimizer step."""

    found: dict[str, torch.Tensor]

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **others: Any) -> None:
        self.found = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory, model: str) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("tables")
    scored = save_scored(folder / "scored", model)
    weights = nlft_ray.write_weights(WeightsConfig(input=scored, output=str(folder / "weights")))
    return list(read_rows(Folder(weights.output)))[:8]


def trained(model: str, rows: list[dict[str, Any]], output: Path, **settings: Any) -> dict[str, torch.Tensor]:
    loss, gradients = TokenWeightLoss(), Gradients()
    arguments: dict[str, Any] = {"remove_unused_columns": False, "max_length": None, "max_steps": 1}
    arguments |= {"max_grad_norm": 0, "report_to": [], "bf16": False, "save_strategy": "no"}
    arguments |= {"gradient_checkpointing": False, "disable_tqdm": True}
    trainer = SFTTrainer(
        AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
        args=SFTConfig(output_dir=str(output), **arguments | settings),
        train_dataset=Dataset.from_list(rows),
        data_collator=TokenWeightCollator(pad_token_id=0),
        compute_loss_func=loss,
        callbacks=[loss, gradients],
    )
    trainer.train()
    return gradients.found


def defined(model: str, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Gradients of the mean over examples of the mean over their tokens, each example by itself."""
    own = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float64)
    for row in rows:
        logits = own(torch.tensor([row["input_ids"]])).logits[0, :-1]
        logp = logits.log_softmax(-1).gather(1, torch.tensor(row["input_ids"])[1:, None])[:, 0]
        weights, signs = torch.tensor(row["weights"])[1:], torch.tensor(row["signs"])[1:]
        terms = -weights * torch.where(signs > 0, logp, torch.log(-torch.expm1(logp)))
        n = sum(label != -100 for label in row["labels"])
        (terms[signs != 0].sum() / n / len(rows)).backward()
    return {name: parameter.grad for name, parameter in own.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize(("size", "accumulated"), [(8, 1), (2, 4)])
def test_gradients_are_those_of_the_definition(
    model: str, rows: list[dict[str, Any]], tmp_path: Path, size: int, accumulated: int
) -> None:
    found = trained(model, rows, tmp_path, per_device_train_batch_size=size, gradient_accumulation_steps=accumulated)
    wanted = defined(model, rows)
    assert found.keys() == wanted.keys()
    assert any(row["signs"].count(-1) for row in rows)
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name].double(), gradient, rtol=1e-4, atol=1e-6)


def test_a_loss_without_its_weights_says_what_is_missing() -> None:
    with pytest.raises(RuntimeError, match="give TokenWeightLoss to `callbacks` too"):
        TokenWeightLoss()(None, torch.zeros(1, 2, dtype=torch.long))


def test_a_row_that_was_cut_is_refused(rows: list[dict[str, Any]]) -> None:
    cut = rows[0] | {"input_ids": rows[0]["input_ids"][:-1]}
    with pytest.raises(ValueError, match="columns of different lengths"):
        TokenWeightCollator(0)([cut])
