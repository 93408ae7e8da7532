"""Whose keys are whose in DeepSpeed's configuration."""

from typing import Any

import pytest
import torch

from nlft_ray.config import TrainOptions
from nlft_ray.errors import UserError
from nlft_ray.stages.train.deepspeed_config import deepspeed_config


def made(**extra: Any) -> dict[str, Any]:
    return deepspeed_config(TrainOptions(zero_stage=2, deepspeed=extra), torch.bfloat16, 2, 3)


def test_further_keys_are_merged_into_ours() -> None:
    config = made(zero_optimization={"offload_optimizer": {"device": "cpu"}}, dump_state=True)
    assert config["zero_optimization"] == {"stage": 2, "offload_optimizer": {"device": "cpu"}}
    assert config["dump_state"] is True
    assert config["optimizer"]["params"]["torch_adam"] is False  # offloaded states need DeepSpeed's own
    assert config["bf16"] == {"enabled": True}


def test_keys_that_are_ours_are_errors_that_name_the_option() -> None:
    with pytest.raises(UserError) as error:
        made(train_batch_size=8, zero_optimization={"stage": 3}, optimizer={"type": "Adam"})
    message = str(error.value)
    assert "deepspeed.train_batch_size: nlft-ray sets this itself; use batch_size." in message
    assert "deepspeed.zero_optimization.stage: nlft-ray sets this itself; use zero_stage." in message
    assert "deepspeed.optimizer:" in message
