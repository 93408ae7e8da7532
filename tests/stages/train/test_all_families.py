"""Every family of models trains as the definition says, and what is exported is the trained model."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from nlft_ray.errors import UserError
from nlft_ray.stages.export.job import export
from tests.random_models import FAMILIES, plain_model, save_random_model
from tests.stages.export.test_export import exporting, trained
from tests.stages.train import support
from tests.stages.train.test_exactness import INSTRUCTION, check_steps

IDS = torch.arange(6, 26)[None]
pytestmark = [pytest.mark.usefixtures("process_group", "one_thread"), pytest.mark.slow]


EXPERTS = {"mixtral", "qwen3_moe", "deepseek_v3"}
"""Families whose experts get adapters."""


def table_for(model: str, folder: Path) -> str:
    rows = [
        row | {"input_ids": INSTRUCTION + row["input_ids"], "response_start": len(INSTRUCTION) + row["response_start"]}
        for row in support.scored_rows(11)
    ]
    return support.save_scored(folder, model, rows)


@pytest.mark.parametrize("lora", [None, {"dropout": 0.3}], ids=["full", "lora"])
@pytest.mark.parametrize("family", FAMILIES)
def test_three_steps_are_those_of_the_definition(family: str, lora: Any, tmp_path: Path) -> None:
    model = save_random_model(tmp_path / "model", family)
    table = table_for(model, tmp_path / "scored")
    do = lambda work, *arguments: work(*arguments)  # noqa: E731
    changes = {"micro_batch_size_per_worker": 8, "lora": lora}
    if lora and family in EXPERTS:
        with pytest.raises(UserError, match="whose adapters cannot drop"):
            check_steps(changes, do, model, table, tmp_path, steady=1e-3)
        changes["lora"] = {}
    check_steps(changes, do, model, table, tmp_path, steady=1e-3)


@pytest.mark.filterwarnings("ignore:The following")  # of PEFT, about experts
@pytest.mark.parametrize("lora", [None, {}], ids=["full", "lora"])
@pytest.mark.parametrize("family", FAMILIES)
def test_exports_are_the_trained_model(family: str, lora: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = save_random_model(tmp_path / "model", family)
    table = table_for(model, tmp_path / "scored")
    config = support.train_config(model, table, tmp_path / "trained", lora=lora, max_steps=2)
    expected = trained(config, monkeypatch)
    exported = [plain_model(export(exporting(config, tmp_path / "merged")).output)]
    if lora is not None:
        adapter = export(exporting(config, tmp_path / "adapter", merge=False)).output
        exported.append(PeftModel.from_pretrained(plain_model(model), adapter))
    for loaded in exported:
        # merged weights round otherwise than two products that are added up: 1.4e-5 was seen
        torch.testing.assert_close(loaded.eval()(IDS).logits, expected, rtol=1e-4, atol=5e-5)
