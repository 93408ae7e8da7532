"""Writing the weights needs little memory."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import LlamaConfig, LlamaForCausalLM

from tests.random_models import byte_tokenizer
from tests.stages.train import support, workers


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, int]:
    """A model folder, and the size of its parameters in bytes: large against what a process grows by anyway."""
    folder, tokenizer = tmp_path_factory.mktemp("large"), byte_tokenizer()
    sizes: dict[str, Any] = {
        "hidden_size": 512,
        "intermediate_size": 2048,
        "num_hidden_layers": 12,
        "num_attention_heads": 8,
    }
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), eos_token_id=1, **sizes))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder), sum(parameter.nbytes for parameter in model.parameters())


@pytest.mark.parametrize("stage", [2, 3])
def test_the_model_is_on_the_host_no_more_than_twice(
    stage: int, large: tuple[str, int], tmp_path: Path, two_workers: workers.Group
) -> None:
    model, size = large
    config = support.train_config(model, "-", tmp_path / "out", zero_stage=stage, lora=None)
    two_workers.do(workers.measure_export, config, tmp_path)
    growth = sum(int((tmp_path / str(rank)).read_text()) for rank in (0, 1))
    print(f"ZeRO {stage}: {size / 2**20:.0f} MiB of parameters, export grew by {growth / 2**20:.0f} MiB")
    assert growth < 2 * size
    with safe_open(next((tmp_path / "out" / "weights").glob("*.safetensors")), "pt") as file:
        assert sum(file.get_tensor(name).nbytes for name in file.keys()) >= size  # noqa: SIM118
        assert file.get_tensor("model.norm.weight").dtype == torch.float32
