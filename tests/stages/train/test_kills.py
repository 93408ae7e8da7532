"""Training survives force: whatever is killed, the same command ends with the weights of an undisturbed run.

The ordinary run kills a driver and a worker (test_job.py). Ten kills at random moments, of workers, of all workers and
of the driver with its cluster:

    pytest -s -m exhaustive tests/stages/train/test_kills.py

NLFT_KILL_SEED chooses the moments; they are printed.
"""

import json
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.stages.forced_failures import Running, nothing_left_behind
from tests.stages.train import support, workers

SEED = int(os.environ.get("NLFT_KILL_SEED", "1"))
STEPS = 120
SETTINGS: dict[str, Any] = {
    "num_workers": 2,
    "zero_stage": 2,
    "batch_size": 2,
    "epochs": STEPS // 6,  # 11 rows
    "checkpoint_every_steps": 5,
    "checkpoints_to_keep": 2,
    "max_failures": 20,
    "lora": {"dropout": 0.2},
}
pytestmark = [
    pytest.mark.timeout(1200),
    pytest.mark.exhaustive,
]


class Training(Running):
    """`nlft-ray train`, whose units of work are optimizer steps."""

    stage, actor = "train", "RayTrainWorker"

    def done(self) -> int:
        return len(support.record(self._output))


@pytest.fixture(scope="module")
def undisturbed(
    tmp_path_factory: pytest.TempPathFactory, model: str, scored: str, two_workers: workers.Group
) -> dict[str, torch.Tensor]:
    """What a training gives that nobody disturbs."""
    folder = tmp_path_factory.mktemp("undisturbed")
    config = support.train_config(model, scored, folder / "trained", **SETTINGS)
    two_workers.do(workers.train_in, config, folder / "checkpoints")
    return weights_in(folder / "trained")


def weights_in(output: Path) -> dict[str, torch.Tensor]:
    return load_file(output / "weights" / "adapter_model.safetensors")


@pytest.mark.parametrize(("victim", "kills"), [("a worker", 4), ("all workers", 3), ("driver", 3)])
def test_killed_at_random_moments(
    victim: str, kills: int, model: str, scored: str, tmp_path: Path, undisturbed: dict[str, torch.Tensor]
) -> None:
    output, settings = tmp_path / "trained", tmp_path / "train.yaml"
    config = support.train_config(model, scored, output, **SETTINGS)
    settings.write_text(yaml.safe_dump(config.model_dump(mode="json", exclude_defaults=True)))
    chance = random.Random(SEED + len(victim))
    with nothing_left_behind():
        left = kills
        while True:
            with Training(["--config", str(settings)], output) as running:
                while left and (moment := wait_for_a_moment(running, chance)):
                    kill(running, victim, chance)
                    left -= 1
                    print(f"killed {victim} {moment}; {running.done()} of {STEPS} steps in the record")
                if running.returncode is None and left == 0:
                    running.wait()
            if running.returncode == 0:
                break
            assert running.returncode == -9 or running.ray_did_not_start, running.text
    assert left == 0, "the training ended before it was killed as often as wanted"
    assert [line["step"] for line in support.record(output)] == list(range(1, STEPS + 1))
    assert_same(weights_in(output), undisturbed)
    assert json.loads((output / "manifest.json").read_text())["counts"]["steps"] == STEPS
    assert_two_checkpoints(output)


def wait_for_a_moment(running: Training, chance: random.Random) -> str | None:
    """Let a random time pass, on the clock or in steps. Its description; None where the command ended before."""
    if chance.random() < 0.3:
        seconds = chance.uniform(1, 15)
        until = time.monotonic() + seconds
        return f"after {seconds:.1f} s" if running.wait_until(lambda: time.monotonic() >= until) else None
    steps = chance.randint(1, 20)
    wanted = running.done() + steps
    return f"after {steps} steps" if running.wait_until(lambda: running.done() >= wanted) else None


def kill(running: Training, victim: str, chance: random.Random) -> None:
    if victim == "driver":
        running.kill_driver()
        return
    wanted: Callable[[], bool] = lambda: len(running.actors()) >= 2  # noqa: E731
    assert running.wait_until(wanted)
    pids = running.actors()
    running.kill_actors(pids if victim == "all workers" else chance.sample(pids, 1))


def assert_same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in found.items())


def assert_two_checkpoints(output: Path) -> None:
    """The newest ones, whole; what kills left half-written is gone, but for what the last start itself may have."""
    complete = sorted(path.parent.name for path in (output / "checkpoints").glob("*/checkpoint.json"))
    assert [name.split("-")[1] for name in complete] == [f"{STEPS - 10:08d}", f"{STEPS - 5:08d}"]
    assert len(list((output / "checkpoints").iterdir())) == 2
