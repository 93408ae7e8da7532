"""`nlft-ray weights`: what a training would train on, as a table for others."""

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest

import nlft_ray
from nlft_ray.config import WeightsConfig
from nlft_ray.core.policies import POLICIES
from nlft_ray.errors import UserError
from nlft_ray.stages.train.examples import Example
from nlft_ray.stages.train.weights import token_weights
from nlft_ray.tables.manifest import StageResult
from tests.rows import read_table
from tests.stages.train.support import train_config, weigh


def write(scored: str, output: Path, policy: Any) -> StageResult:
    return nlft_ray.write_weights(
        WeightsConfig.model_validate({"input": scored, "output": str(output), "policy": policy})
    )


@pytest.mark.parametrize("policy", POLICIES)
def test_they_are_those_that_a_training_takes(policy: str, model: str, scored: str, tmp_path: Path) -> None:
    result = write(scored, tmp_path / "weights", policy)
    rows = read_table(tmp_path / "weights")
    examples = {one.id: one for one in weigh(train_config(model, scored, tmp_path / "trained", policy=policy))}
    assert rows.keys() == examples.keys()
    assert result.manifest.rows_out == len(rows)
    scale = POLICIES[policy]().loss_scale
    for id, example in examples.items():
        row = {name: np.array(values) for name, values in rows[id].items() if name != "id"}
        start, trained = example.response_start, slice(example.response_start, None)
        assert row["input_ids"].tolist() == example.input_ids.tolist()
        assert set(row["labels"][:start]) == {-100}
        assert row["labels"][trained].tolist() == example.input_ids[trained].tolist()
        raised, lowered = (np.where(row["signs"] == sign, row["weights"], 0)[trained] for sign in (1, -1))
        np.testing.assert_allclose(raised, scale * example.likelihood, rtol=1e-6)
        np.testing.assert_allclose(lowered, scale * example.unlikelihood, rtol=1e-6)
        assert not row["weights"][:start].any()
        assert not row["signs"][:start].any()


def test_the_library_datasets_reads_them(scored: str, tmp_path: Path) -> None:
    result = write(scored, tmp_path / "weights", "nlft")
    read = datasets.load_dataset("parquet", data_dir=f"{result.output}/data", split="train", cache_dir=str(tmp_path))
    assert len(read) == result.manifest.rows_out
    assert {"input_ids", "labels", "weights", "signs"} <= set(read.column_names)


def test_a_second_start_finds_them_complete(scored: str, tmp_path: Path) -> None:
    assert not write(scored, tmp_path / "weights", "cut").reused
    assert write(scored, tmp_path / "weights", "cut").reused
    with pytest.raises(UserError, match="made with other settings"):
        write(scored, tmp_path / "weights", "rft")


def test_a_token_that_is_raised_and_lowered_has_no_one_sign() -> None:
    ones = np.ones(2, np.float32)
    both = Example("x", np.arange(4, dtype=np.int32), 2, ones, np.array([0, 1], np.float32), ones)
    with pytest.raises(UserError, match="both raises and lowers a token of row 'x'"):
        token_weights(both, 1.0)
