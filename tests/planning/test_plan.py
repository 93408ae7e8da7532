"""From a configuration alone to settings that score and train accept."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from rich.console import Console
from transformers import AutoConfig, AutoModelForCausalLM

import nlft_ray
from nlft_ray.cli.arguments import load_config, validate
from nlft_ray.cli.main import main
from nlft_ray.cli.summary import show
from nlft_ray.config import LoraConfig, ModelConfig, PlanConfig, ScoreConfig, TrainConfig
from nlft_ray.errors import UserError
from nlft_ray.planning.meta import read_adapters, read_shape
from nlft_ray.planning.plan import Plan
from tests.random_models import ARCHITECTURES, save_random_model

GPUS = {"gpus_per_node": 8, "gpu_memory_gib": 80}
_LLAMAS = {
    "8B": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32},
    "70B": {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64},
}


def config_only(folder: Path, size: str, **changes: Any) -> str:
    """A folder with the configuration of a large Llama, and nothing else."""
    settings = {"vocab_size": 128_256, "num_key_value_heads": 8, "max_position_embeddings": 8192}
    config = AutoConfig.for_model("llama", **settings | _LLAMAS[size] | changes)
    config.save_pretrained(folder / size)
    return str(folder / size)


def plan(model: str, cluster: dict[str, Any], **changes: Any) -> Plan:
    return nlft_ray.plan(validate(PlanConfig, {"model": {"path": model}, "cluster": cluster} | changes))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_shape_is_the_loaded_models(architecture: str, tmp_path: Path) -> None:
    path = save_random_model(tmp_path, architecture)
    model = AutoModelForCausalLM.from_pretrained(path)
    for weights in tmp_path.glob("*.safetensors"):
        weights.unlink()
    shape = read_shape(ModelConfig(path=path))
    assert shape.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert shape.gated == (architecture != "gpt2")
    assert shape.mlp_width == (128 if architecture == "gpt2" else 64)
    assert (shape.layers, shape.width, shape.query_width) == (2, 32, 32)
    assert shape.key_width == (32 if architecture == "gpt2" else 16)


def test_an_8b_model_trains_adapters_on_one_gpu_and_in_full_on_eight(tmp_path: Path) -> None:
    model = config_only(tmp_path, "8B")
    one = plan(model, {"gpus_per_node": 1, "gpu_memory_gib": 80})
    assert one.shape.parameters == 8_030_261_248
    assert one.adapters.parameters == 41_943_040
    assert one.training is not None
    assert one.training.setup.zero_stage == 0
    assert plan(model, {"gpus_per_node": 1, "gpu_memory_gib": 80}, train={"lora": None}).training is None
    full = plan(model, GPUS, train={"lora": None, "batch_size": 8}).training
    assert full is not None
    assert full.setup.zero_stage >= 2
    assert full.fits


def test_no_weights_no_loading(tmp_path: Path) -> None:
    found = plan(config_only(tmp_path, "70B"), GPUS)
    assert found.shape.parameters == 70_553_706_496
    assert not found.scoring.fits, "131 GiB of weights are more than one GPU has"
    assert found.training is not None
    assert found.training.setup.zero_stage == 3


def test_several_gpus_hold_one_copy(tmp_path: Path) -> None:
    model = config_only(tmp_path, "70B")
    alone, shared = (plan(model, GPUS | {"nodes": 2}, tensor_parallel=processes) for processes in (1, 4))
    assert shared.scoring.memory.weights == alone.scoring.memory.weights // 4
    assert shared.scoring.fits
    assert shared.scoring.workers == 4
    where = {"input": str(tmp_path / "a"), "output": str(tmp_path / "b")}
    pool = validate(ScoreConfig, yaml.safe_load(shared.score_yaml) | where).pool
    assert (pool.tensor_parallel, pool.max_workers) == (4, 4)
    machine = {"gpus_per_node": 0, "cpus_per_node": 16, "node_memory_gib": 64}
    assert plan("sandbox", machine, tensor_parallel=2).scoring.workers == 8


def test_what_is_set_is_kept_and_the_rest_is_chosen(tmp_path: Path) -> None:
    model = config_only(tmp_path, "8B")
    settings = {"zero_stage": 3, "num_workers": 4, "micro_batch_size_per_worker": 2, "batch_size": 16}
    found = plan(model, GPUS, train=settings, score={"max_tokens_per_batch": 4096})
    assert found.training is not None
    training = found.training.setup
    assert (training.zero_stage, training.workers, found.training.micro_batch_size) == (3, 4, 2)
    assert training.micro_steps == 2
    assert found.scoring.max_tokens_per_batch == 4096


def test_score_and_train_accept_what_is_recommended(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [config_only(tmp_path, "8B"), "cluster.gpus_per_node=8", "cluster.gpu_memory_gib=80"]
    main(["plan", *words, "train.policy=origin", "train.epochs=3", f"output={tmp_path / 'plan'}"])
    shown = capsys.readouterr().out
    assert "ZeRO stage" in shown
    where = [f"input={tmp_path}/a", f"output={tmp_path}/b"]
    score = load_config(ScoreConfig, str(tmp_path / "plan" / "score.yaml"), where)
    train = load_config(TrainConfig, str(tmp_path / "plan" / "train.yaml"), where)
    assert (score.model.dtype, score.pool.max_workers) == ("bfloat16", 8)
    assert (train.policy.name, train.epochs, train.num_workers, train.lora) == ("origin", 3, 4, LoraConfig())


def test_a_cluster_may_stand_in_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text("cluster: {nodes: 2, gpus_per_node: 8, gpu_memory_gib: 80}\n")
    main(["plan", "sandbox", "--config", str(file)])
    assert "16 GPUs of 80 GiB on 2 machines" in capsys.readouterr().out


def test_what_fits_nowhere_says_so_and_recommends_nothing(tmp_path: Path) -> None:
    found = plan(config_only(tmp_path, "70B"), {"gpus_per_node": 1, "gpu_memory_gib": 24})
    assert found.train_yaml is None
    console = Console(record=True, width=140)
    show(found, console)
    assert "Training does not fit" in console.export_text()


def test_cpu_workers_share_a_machines_memory() -> None:
    wide, narrow = (
        plan("sandbox", {"gpus_per_node": 0, "cpus_per_node": 16, "node_memory_gib": gib}) for gib in (64, 4)
    )
    assert wide.scoring.workers == 16
    assert narrow.scoring.workers < 8
    assert narrow.scoring.fits


def test_a_policy_that_trains_standard_answers_is_planned_by_their_length() -> None:
    lengths = {"prompt_tokens": 100, "response_tokens": 200, "standard_answer_tokens": 10}
    of_responses, of_answers = (
        plan("sandbox", {"gpus_per_node": 0}, lengths=lengths, train={"policy": policy, "batch_size": 1}).training
        for policy in ("nlft", "sft")
    )
    assert of_responses is not None
    assert of_answers is not None
    assert of_answers.memory.activations < of_responses.memory.activations


def test_adapters_are_counted_where_their_targets_are() -> None:
    sandbox = ModelConfig(path="sandbox")
    shape, found = read_shape(sandbox), read_adapters(sandbox, LoraConfig(rank=4, targets=["down_proj"]))
    assert found.parameters == shape.layers * 4 * (shape.width + shape.mlp_width)
    assert found.activations == 4
    with pytest.raises(UserError, match=r"train\.lora\.targets: \['c_attn'\]"):
        read_adapters(sandbox, LoraConfig(targets=["c_attn"]))


def test_a_mixture_of_experts_is_refused(tmp_path: Path) -> None:
    AutoConfig.for_model("mixtral", num_hidden_layers=1, num_local_experts=8).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="mixture of 8 experts"):
        plan(str(tmp_path), GPUS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cluster": {"gpus_per_node": 8}}, "gpus_per_node and gpu_memory_gib belong together"),
        ({"lengths": {"prompt_tokens": 600}}, "sandbox takes 512"),
        ({"model": {"path": "./absent"}}, "no configuration that can be planned for"),
        ({"cluster": GPUS, "tensor_parallel": 4}, "6 attention heads .* 4 processes: set 2, 3, 6"),
        ({"cluster": GPUS | {"gpus_per_node": 1}, "tensor_parallel": 2}, "on one machine, which has 1 GPUs"),
    ],
)
def test_mistakes_are_told(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        nlft_ray.plan(validate(PlanConfig, {"model": {"path": "sandbox"}} | changes))


def test_help_teaches_by_example(capsys: pytest.CaptureFixture[str]) -> None:
    main(["plan", "--help"])
    shown = capsys.readouterr().out
    assert "cluster.gpus_per_node=8 cluster.gpu_memory_gib=80" in shown
    assert "response_tokens" in shown
    assert torch.get_default_device().type == "cpu"
