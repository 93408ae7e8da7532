"""An elastic training on a cluster whose machines come and go.

pytest -m exhaustive tests/stages/train/test_elastic.py
"""

import itertools
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from ray.cluster_utils import Cluster

from nlft_ray.errors import UserError
from tests.stages.train import support, workers

_RUN = (
    "import sys; from nlft_ray.stages.train import job; from nlft_ray.config import TrainConfig; "
    "from nlft_ray.cli.arguments import load_config; from nlft_ray.execution import ray_workers; "
    "ray_workers._RESIZING_SECONDS = 2.0; "
    "job.train(load_config(TrainConfig, sys.argv[1], sys.argv[2:]))"
)


@pytest.mark.parametrize("bounds", [[3, 2], [0, 2], [1, 2, 3]], ids=str)
def test_bounds_that_do_not_fit_are_refused(bounds: list[int], model: str, scored: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="num_workers"):
        support.train_config(model, scored, tmp_path, num_workers=bounds)


@pytest.mark.exhaustive
@pytest.mark.timeout(300)
@pytest.mark.usefixtures("process_group", "one_thread")
def test_machines_go_and_come_back(model: str, scored: str, tmp_path: Path) -> None:
    output, settings = tmp_path / "out", tmp_path / "train.yaml"
    changes = {"epochs": 150, "batch_size": 11, "learning_rate": 1e-4, "checkpoint_every_steps": 5}
    config = support.train_config(model, scored, output, num_workers=[1, 2], zero_stage=3, **changes)
    settings.write_text(yaml.safe_dump(config.model_dump(mode="json", exclude_defaults=True)))
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
        with (tmp_path / "said.txt").open("w") as said:
            driver = subprocess.Popen(
                [sys.executable, "-c", _RUN, str(settings), f"ray_address={cluster.address}"], stdout=said, stderr=said
            )
        try:
            wait_until(driver, lambda: steps_with(2, output) > 12)
            cluster.remove_node(nodes[1], allow_graceful=False)
            wait_until(driver, lambda: steps_with(1, output) > 12)
            cluster.add_node(num_cpus=1)
            assert driver.wait(timeout=200) == 0, (tmp_path / "said.txt").read_text()
        finally:
            driver.kill()
    finally:
        cluster.shutdown()
    lines = support.record(output)
    assert [line["step"] for line in lines] == list(range(1, 151))
    numbers = [number for number, _ in itertools.groupby(line["workers"] for line in lines)]
    assert numbers in ([2, 1, 2], [1, 2, 1, 2]), "the first may find the second machine not there yet"
    workers.train_in(support.train_config(model, scored, tmp_path / "alone", **changes), tmp_path / "checkpoints")
    for one, other in zip(lines, support.record(tmp_path / "alone"), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-3)


def steps_with(number: int, output: Path) -> int:
    """Steps that a number of workers has taken, if the last was one of theirs."""
    numbers = [line["workers"] for line in support.record(output)]
    return numbers.count(number) if numbers[-1:] == [number] else 0


def wait_until(driver: subprocess.Popen[bytes], reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not reached():
        assert driver.poll() is None, "the training ended before"
        assert time.monotonic() < deadline
        time.sleep(0.05)
