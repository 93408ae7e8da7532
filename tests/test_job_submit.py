"""`ray job submit` of the scripts in pipelines/, by Ray's own command line, against a real cluster."""

import json
import os
import signal
import sysconfig
import venv
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from nlft_ray.sandbox import QUICKSTART
from nlft_ray.tables.manifest import MANIFEST
from nlft_ray.tables.schema import CORRECT, INCORRECT
from tests.clusters.job_cluster import JobCluster, job_cluster
from tests.rows import example, read_table, write_table
from tests.stages.forced_failures import Scoring, example_rows
from tests.stages.train import support

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def cluster() -> Iterator[JobCluster]:
    with job_cluster() as started:
        yield started


def test_score_and_train_run_as_jobs(tmp_path: Path, cluster: JobCluster, random_llama: str) -> None:
    rows = [example(str(number), correct=number % 2 == 0) for number in range(8)]
    examples = write_table(tmp_path / "examples", "examples", rows)
    scored, trained = tmp_path / "scored", tmp_path / "trained"
    model = f"model.path={random_llama}"
    job = cluster.submit("pipelines/score.py", f"input={examples}", f"output={scored}", model)
    assert job.wait() == 0, job.log
    assert "score: 8/8 rows" in job.log
    found = read_table(scored)
    assert {row["verdict"] for row in found.values()} == {CORRECT, INCORRECT}
    assert len(found) == 8
    job = cluster.submit(
        "pipelines/train.py", f"input={scored}", f"output={trained}", model, "epochs=1", "batch_size=4"
    )
    assert job.wait() == 0, job.log
    assert "train: 2/2 steps, loss" in job.log
    assert "succeeded" in job.status()
    assert len((trained / "metrics.jsonl").read_text().splitlines()) == 2
    assert (trained / "weights" / "adapter_model.safetensors").stat().st_size > 1000


def test_the_chain_runs_as_a_job_and_its_models_are_evaluated_by_another(tmp_path: Path, cluster: JobCluster) -> None:
    small = ["questions.limit=16", "policies=[nlft]", "train.epochs=1", "test_questions.limit=20"]
    run = ["pipelines/run.py", "--config", str(QUICKSTART), f"run_dir={tmp_path}", *small]
    job = cluster.submit(*run)
    assert job.wait() == 0, job.log
    for stage in ("sample", "judge", "score", "train", "evaluate"):
        assert f"\n{stage} → " in job.log
    words = [f"input={tmp_path / 'test_questions'}", f"output={tmp_path / 'again'}", "max_new_tokens=64"]
    job = cluster.submit("pipelines/evaluate.py", *words, f"model.path={tmp_path / 'models' / 'nlft'}")
    assert job.wait() == 0, job.log
    assert "accuracy" in job.log
    job = cluster.submit(*run)
    assert job.wait() == 0, job.log
    assert "score: already complete" in job.log


@pytest.mark.smoke
def test_a_stopped_scoring_continues_when_it_is_submitted_again(tmp_path: Path, cluster: JobCluster) -> None:
    rows = example_rows(1000)
    examples = write_table(tmp_path / "examples", "examples", rows)
    scoring = Scoring(tmp_path, examples, tmp_path / "scored")
    words = ["pipelines/score.py", *scoring.words, "pool.max_workers=1"]
    job = cluster.submit(*words)
    job.wait_until(lambda: " s left" in job.log)
    assert "Stopped" in (said := job.stop()) or "stopped" in said, said
    seen = scoring.files()
    assert 0 < len(seen) < 125
    assert "stopped" in job.status()
    assert "The same command continues" in job.log
    job = cluster.submit(*words)
    assert job.wait() == 0, job.log
    assert "\r" not in job.log, "a line for each look at the progress, no bar that is drawn anew"
    assert len(read_table(scoring.output)) == 999, "one row makes the model raise"
    written = scoring.files()
    assert {name: written[name] for name in seen} == seen, "finished shards were done again"


def test_a_stopped_training_continues_when_it_is_submitted_again(tmp_path: Path, cluster: JobCluster) -> None:
    model = support.save_model(tmp_path / "model")
    scored, output = support.save_scored(tmp_path / "scored", model), tmp_path / "trained"
    words = ["pipelines/train.py", f"input={scored}", f"output={output}", f"model.path={model}", "lora=null"]
    words += ["batch_size=11", "epochs=300", "checkpoint_every_steps=10"]
    job = cluster.submit(*words)
    job.wait_until(lambda: len(support.record(output)) >= 35)
    job.stop()
    before = support.record(output)
    assert len(before) < 300
    job = cluster.submit(*words)
    assert job.wait() == 0, job.log
    after = support.record(output)
    assert [line["step"] for line in after] == list(range(1, 301))
    assert after[:30] == before[:30], "kept, not taken again"
    assert json.loads((output / MANIFEST).read_text())["counts"]["steps"] == 300


def test_a_users_mistake_and_a_crash_are_told_apart(tmp_path: Path, cluster: JobCluster) -> None:
    mistaken = cluster.submit("pipelines/score.py", "modl.path=x")
    assert mistaken.wait() == 1, "that of `ray job submit`, whatever the failure"
    log, status = mistaken.log, mistaken.status()
    assert "failed with exit code 2" in status
    assert "Did you mean 'model'?" in status
    assert "Traceback" not in log + status

    examples = write_table(tmp_path / "examples", "examples", example_rows(1000))
    scoring = Scoring(tmp_path, examples, tmp_path / "scored")
    crashed = cluster.submit("pipelines/score.py", *scoring.words)
    crashed.wait_until(lambda: len(scoring.files()) > 0)
    for process in psutil.process_iter(["cmdline"]):
        command = process.info["cmdline"] or []
        if "pipelines/score.py" in command and f"output={scoring.output}" in command and "submit" not in command:
            os.kill(process.pid, signal.SIGKILL)
    assert crashed.wait() == 1
    assert "failed with exit code -9" in crashed.status() or "failed with exit code 137" in crashed.status()


@pytest.fixture
def bare(tmp_path: Path) -> Iterator[JobCluster]:
    """A cluster whose Python finds everything but this package."""
    venv.create(tmp_path / "bare", with_pip=False)
    packages = next((tmp_path / "bare" / "lib").glob("python*/site-packages"))
    (packages / "those-of-the-tests.pth").write_text(sysconfig.get_path("purelib"))  # its own .pth files are not read
    with job_cluster(str(tmp_path / "bare" / "bin" / "python")) as started:
        yield started


def test_nodes_without_the_package_get_it_with_the_job(tmp_path: Path, bare: JobCluster, random_llama: str) -> None:
    found = bare.submit("-c", "import nlft_ray; print(nlft_ray.__file__)")
    assert found.wait() == 0, found.log
    assert "/working_dir_files/" in found.log, "not the checkout itself"
    rows = [example(str(number), correct=number % 2 == 0) for number in range(4)]
    examples = write_table(tmp_path / "examples", "examples", rows)
    scored, trained = tmp_path / "scored", tmp_path / "trained"
    model, runtime_env = f"model.path={random_llama}", "clusters/runtime_env.yaml"
    job = bare.submit("pipelines/score.py", f"input={examples}", f"output={scored}", model)
    assert job.wait() == 0, job.log
    words = [f"input={scored}", f"output={trained}", model, "max_steps=1"]
    job = bare.submit("pipelines/train.py", *words, runtime_env=runtime_env)
    assert job.wait() == 0, job.log
    assert len(support.record(trained)) == 1


def test_a_relative_output_is_refused(tmp_path: Path, cluster: JobCluster, random_llama: str) -> None:
    """It would lie in a copy of the working directory, which goes when the job does."""
    examples = write_table(tmp_path / "examples", "examples", [example("1", correct=True)])
    job = cluster.submit("pipelines/score.py", f"input={examples}", "output=runs/scored", f"model.path={random_llama}")
    assert job.wait() == 1
    assert "exit code 2" in job.status()
    assert "runs/scored lies in the copy of your working directory" in job.log
