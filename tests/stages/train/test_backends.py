"""A training in this process and one of a worker that Ray places are the same training."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import yaml
from safetensors.torch import load_file

from nlft_ray.config import RunConfig, TrainConfig
from nlft_ray.errors import UserError
from nlft_ray.stages.train import job
from nlft_ray.stages.train.job import train
from tests.stages.train import support

SETTINGS: dict[str, Any] = {"lora": {"dropout": 0.2}, "batch_size": 3, "zero_stage": 2}


def outcome(config: TrainConfig) -> tuple[Any, ...]:
    result = train(config)
    lines = [line | {"seconds": 0} for line in support.record(config.output)]
    weights = load_file(Path(config.output) / "weights" / "adapter_model.safetensors")
    manifest = result.manifest
    return lines, {name: tensor.tolist() for name, tensor in weights.items()}, manifest.counts, manifest.identity


@pytest.mark.usefixtures("ray_local")
def test_both_give_the_same_weights(model: str, scored: str, tmp_path: Path) -> None:
    inline, ray = (
        outcome(support.train_config(model, scored, tmp_path / backend, **SETTINGS, backend=backend))
        for backend in ("inline", "ray")
    )
    assert inline == ray


@pytest.mark.system
def test_inline_training_goes_on_after_a_kill_and_never_imports_ray(model: str, scored: str, tmp_path: Path) -> None:
    settings = SETTINGS | {"backend": "inline", "epochs": 4, "checkpoint_every_steps": 2}
    whole = support.train_config(model, scored, tmp_path / "whole", **settings)
    train(whole)
    config, file = support.train_config(model, scored, tmp_path / "killed", **settings), tmp_path / "train.yaml"
    file.write_text(yaml.safe_dump(config.model_dump(mode="json", exclude_defaults=True)))
    code = (
        "import os, sys; from nlft_ray.cli.main import main; from nlft_ray.stages.train import loop\n"
        "take = loop.Stepper.take\n"
        "loop.Stepper.take = lambda stepper, step: take(stepper, step) if step < 7 else os._exit(9)\n"
        f"main(['train', '--config', {str(file)!r}])"
    )
    killed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert killed.returncode == 9, killed.stderr
    code = f"import sys; from nlft_ray.cli.main import main; main(['train', '--config', {str(file)!r}])\n"
    code += "assert 'deepspeed' in sys.modules and 'ray' not in sys.modules, 'Ray was imported'"
    again = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert "goes on after step 6 of 16" in again.stderr
    files = [Path(each.output) / "weights" / "adapter_model.safetensors" for each in (whole, config)]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_the_process_is_left_as_it_was(
    model: str, scored: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")  # the start of the first work sets it, for good
    before = dict(os.environ), torch.get_num_threads(), dist.is_initialized()
    train(support.train_config(model, scored, tmp_path / "out", backend="inline", epochs=1, max_steps=1))
    assert (dict(os.environ), torch.get_num_threads(), dist.is_initialized()) == before


def test_several_workers_are_no_one_process(model: str, scored: str, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"backend: inline is one worker in this process: set num_workers=1 \(it is 2\)"
    ):
        support.train_config(model, scored, tmp_path, backend="inline", num_workers=2)
    run = {"run_dir": str(tmp_path), "model": {"path": model}, "questions": {"source": "q.jsonl", "format": "gsm8k"}}
    with pytest.raises(ValueError, match=r"set train\.num_workers=1"):
        RunConfig.model_validate(run | {"pool": {"backend": "inline"}, "train": {"num_workers": [1, 2]}})


def test_memory_that_runs_out_is_told_once_and_not_tried_again(
    model: str, scored: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a worker leaves behind makes the next start of the group end at once: on Ray there would be three more."""
    config = support.train_config(model, scored, tmp_path / "out", backend="inline", zero_stage=1)

    def fail(*arguments: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")

    with monkeypatch.context() as broken:
        broken.setattr("nlft_ray.stages.train.loop.train_worker", fail)
        with pytest.raises(UserError, match=r"a worker ran out of memory .*gradient_checkpointing=true.*zero_stage"):
            train(config)
        with pytest.raises(UserError, match="a worker ran out of memory"):
            job._work(config)  # as the next start would
    assert train(config).manifest.counts["steps"] > 0
