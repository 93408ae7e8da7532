"""`ray job submit` of the scripts in pipelines/, against a real cluster and its job server."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import ray

from nlft_ray import ray_runtime
from nlft_ray.schema import CORRECT, INCORRECT
from tests.conftest import ROOT
from tests.tables import example, read_table, write_table


@pytest.fixture
def job_server(ray_local: None) -> str:
    """Address of the job server of a new cluster: other tests may have worn out the agent of the one before."""
    ray.shutdown()
    ray_runtime.connect(None)
    return f"http://{ray._private.worker._global_node.webui_url}"  # type: ignore[union-attr]


def submit(job_server: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Submit as a user would, from the root of the checkout, and wait for the job's end."""
    ray_command = Path(sys.executable).with_name("ray")
    command = [str(ray_command), "job", "submit", "--address", job_server, "--working-dir", ".", "--", "python", *words]
    environment = os.environ | {"RAY_AUTH_MODE": "token"}  # a cluster started by ray.init asks for its token
    for _ in range(10):  # a cluster's agent takes some seconds to come up
        finished = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
        if "No available agent" not in finished.stderr + finished.stdout:
            break
        time.sleep(5)
    return finished


def test_score_and_train_run_as_jobs(tmp_path: Path, job_server: str, random_llama: str) -> None:
    rows = [example(str(number), correct=number % 2 == 0) for number in range(8)]
    examples = write_table(tmp_path / "examples", "examples", rows)
    scored, trained = tmp_path / "scored", tmp_path / "trained"
    model = f"model.path={random_llama}"
    finished = submit(job_server, "pipelines/score.py", f"input={examples}", f"output={scored}", model)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "score: 8/8 rows" in finished.stdout, "a job's log shows progress"
    found = read_table(scored)
    assert {row["verdict"] for row in found.values()} == {CORRECT, INCORRECT}
    assert len(found) == 8
    finished = submit(
        job_server, "pipelines/train.py", f"input={scored}", f"output={trained}", model, "epochs=1", "batch_size=4"
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert len((trained / "metrics.jsonl").read_text().splitlines()) == 2
    assert (trained / "weights" / "adapter_model.safetensors").stat().st_size > 1000


def test_a_users_mistake_fails_the_job_with_its_message(job_server: str) -> None:
    finished = submit(job_server, "pipelines/score.py", "modl.path=x")
    assert finished.returncode != 0
    assert "Did you mean 'model'?" in finished.stdout
    assert "exit code 2" in finished.stdout
