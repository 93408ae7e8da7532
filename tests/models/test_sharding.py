"""Models that several processes share: what is refused, and why. That it gives the same is tested with a gang."""

import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from transformers import AutoConfig

from nlft_ray.config import LoraConfig, ModelConfig, PoolConfig
from nlft_ray.errors import UserError
from nlft_ray.models.adapters import with_adapters
from nlft_ray.models.loading import load_model
from nlft_ray.models.sharding import check_head, sharding
from tests.conftest import ROOT
from tests.random_models import FAMILIES, save_random_model


def test_the_page_of_models_names_those_without_a_plan(tmp_path: Path) -> None:
    refused = set()
    for family in FAMILIES:
        model = ModelConfig(path=save_random_model(tmp_path / family, family))
        try:
            sharding(model, AutoConfig.from_pretrained(model.path), 2)
        except UserError:
            refused.add(family)
    text = (ROOT / "docs" / "models.md").read_text()
    named = text.split("**Several processes**")[1].split("for which")[0]
    assert set(re.findall(r"`(\w+)`", named)) == refused


@pytest.mark.parametrize(
    ("architecture", "processes", "message"),
    [
        ("gpt2", 2, r"pool\.tensor_parallel=2: transformers .* no plan .*its family is gpt2.*leave it out"),
        ("llama", 4, r"4 attention heads and 2 key-value heads .* evenly among 4 processes: set 2\.$"),
        ("llama", 3, r"evenly among 3 processes: set 2\.$"),
    ],
)
def test_models_that_cannot_be_shared_are_refused(
    tmp_path: Path, architecture: str, processes: int, message: str
) -> None:
    model = ModelConfig(path=save_random_model(tmp_path, architecture))
    with pytest.raises(UserError, match=message):
        load_model(model, tensor_parallel=processes)


def test_a_head_is_not_shared_alone_that_is_one_with_the_embeddings(tmp_path: Path) -> None:
    model = ModelConfig(path=save_random_model(tmp_path, "gpt_neox"))
    with pytest.raises(UserError, match="one matrix for its embeddings and its head"):
        check_head(load_model(model), model)


def test_weights_that_cannot_be_parted_are_refused(random_llama: str, tmp_path: Path) -> None:
    quantised = ModelConfig(path=random_llama, quantization={"quant_method": "bitsandbytes", "load_in_8bit": True})
    with pytest.raises(UserError, match=r"quantised weights are not shared among processes"):
        load_model(quantised, tensor_parallel=2)
    base = ModelConfig(path=random_llama)
    with_adapters(load_model(base), base, LoraConfig(rank=4)).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"is an adapter beside its model: export it with merge=true"):
        load_model(ModelConfig(path=str(tmp_path)), tensor_parallel=2)


@pytest.mark.parametrize("pool", [{"gpus_per_worker": 0.5}, {"gpus_per_worker": 4}])
def test_each_process_has_a_whole_gpu_or_none(pool: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="it counts the GPUs of each process: leave it out, or set 1"):
        PoolConfig.model_validate({"tensor_parallel": 2, **pool})
