"""Runs judge, score and report as one job on a cluster of its own, for a test that planted secrets in the environment.

python -m tests.clusters.planted FOLDER BASE_URL MODEL
"""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ray.job_submission import JobStatus, JobSubmissionClient

from tests.clusters.job_cluster import free_port
from tests.conftest import ROOT

KEY_VARIABLE = "MY_JUDGE_KEY"
_TRIES = 30  # a cluster's agent takes some seconds to come up


@contextmanager
def cluster() -> Iterator[str]:
    """Address of the job server of a new cluster, on ports that no other one has."""
    dashboard = free_port()
    ports = [f"--port={free_port()}", f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={free_port()}"]
    ray = str(Path(sys.executable).with_name("ray"))
    started = subprocess.Popen([ray, "start", "--head", "--block", "--num-cpus=2", *ports])
    try:
        yield f"http://127.0.0.1:{dashboard}"
    finally:
        started.terminate()
        started.wait(60)


def entrypoint(folder: Path, base_url: str, model: str) -> str:
    server = f"server.base_url={base_url} server.model=judge server.api_key_variable={KEY_VARIABLE}"
    commands = {
        "judge": f"input={folder}/responses output={folder}/examples model.path={model} {server} max_reject_fraction=1",
        "score": f"input={folder}/examples output={folder}/scored model.path={model}",
        "report": f"input={folder}/scored output={folder}/report",
    }
    return " && ".join(f"{sys.executable} {ROOT}/pipelines/{stage}.py {words}" for stage, words in commands.items())


def submit(address: str, command: str) -> tuple[JobSubmissionClient, str]:
    """A client of the job server, and the submitted job's id."""
    for _ in range(_TRIES):
        try:
            client = JobSubmissionClient(address)
            return client, client.submit_job(entrypoint=command)
        except (ConnectionError, RuntimeError) as error:
            last = error
            time.sleep(2)
    raise last


def main(folder: Path, base_url: str, model: str) -> None:
    with cluster() as address:
        client, job = submit(address, entrypoint(folder, base_url, model))
        while not client.get_job_status(job).is_terminal():
            time.sleep(1)
        (folder / "job.json").write_text(client._do_request("GET", "/api/jobs/").text)
        (folder / "job.log").write_text(client.get_job_logs(job))
        status = client.get_job_status(job)
    sys.exit(0 if status == JobStatus.SUCCEEDED else 1)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3])
