"""Whose keys are whose in DeepSpeed's configuration."""

from typing import Any

import pytest

from nlft_ray.config import TrainOptions
from nlft_ray.errors import UserError
from nlft_ray.stages.train.deepspeed_config import deepspeed_config


def made(**extra: Any) -> dict[str, Any]:
    return deepspeed_config(TrainOptions(zero_stage=2, deepspeed=extra), True, 2, 3)


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
    assert "nlft-ray sets deepspeed.train_batch_size itself; use batch_size." in message
    assert "nlft-ray sets deepspeed.zero_optimization.stage itself; use zero_stage." in message
    assert "deepspeed.optimizer itself" in message


@pytest.mark.parametrize(("what", "stage"), [("offload_optimizer", 0), ("offload_param", 2)])
def test_keys_that_a_stage_does_not_heed_are_errors(what: str, stage: Any) -> None:
    extra = {"zero_optimization": {what: {"device": "cpu"}}}
    with pytest.raises(UserError, match=rf"deepspeed\.zero_optimization\.{what} needs zero_stage=.*it is {stage}"):
        deepspeed_config(TrainOptions(zero_stage=stage, deepspeed=extra), False, 1, 1)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_gradients_add_up_in_float32(stage: Any) -> None:
    config = deepspeed_config(TrainOptions(zero_stage=stage), True, 1, 1)
    assert config["data_types"]["grad_accum_dtype"] == config["communication_data_type"] == "fp32"
    assert config["zero_optimization"]["stage"] == max(stage, 1)
    assert deepspeed_config(TrainOptions(), False, 1, 1)["zero_optimization"]["stage"] == 0
