"""A cluster that takes jobs, on loopback, and Ray's own command line to submit, watch and stop them."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

from tests.conftest import ROOT

_PATIENCE_SECONDS = 200.0
_RAY = ["-c", "from ray.scripts.scripts import main; main()"]  # an environment may lack the `ray` that pip writes


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


class Job:
    """A submitted job: `ray job submit` waits for its end, and shows its log meanwhile."""

    def __init__(self, cluster: "JobCluster", id: str, command: list[str], log: Path):
        self.id, self._cluster, self._log = id, cluster, log
        with log.open("w") as shown:
            self._process = subprocess.Popen(
                command, cwd=ROOT, env=cluster.environment, stdout=shown, stderr=subprocess.STDOUT
            )

    @property
    def log(self) -> str:
        return self._log.read_text()

    def wait(self) -> int:
        """The exit code of `ray job submit`."""
        return self._process.wait(_PATIENCE_SECONDS)

    def wait_until(self, reached: Callable[[], bool]) -> None:
        """Let it run until something is reached."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while not reached():
            assert self._process.poll() is None, self.log
            assert time.monotonic() < deadline, self.log
            time.sleep(0.05)

    def status(self) -> str:
        return self._cluster.ray("job", "status", self.id)

    def stop(self) -> str:
        said = self._cluster.ray("job", "stop", self.id)
        self.wait()
        return said

    def leave(self) -> None:
        """Watch no longer."""
        self._process.kill()
        self._process.wait()


@contextlib.contextmanager
def job_cluster(python: str = sys.executable) -> Iterator["JobCluster"]:
    """A cluster that takes jobs, until the block is left."""
    started = JobCluster(python)
    try:
        started.wait_until_it_takes_jobs()
        yield started
    finally:
        started.shut_down()


class JobCluster:
    """One node of two CPUs. `python` may belong to another environment than the tests'; then the node does not find
    the package on the tests' path."""

    def __init__(self, python: str):
        self._folder = Path(tempfile.mkdtemp(prefix="r-", dir="/tmp"))  # short: a socket's path has at most 107 letters
        self._jobs: list[Job] = []
        dashboard = free_port()
        clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        clean |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "a-token-of-the-test"}
        self.environment = clean | {"RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}"}
        nodes = clean | {
            "RAY_TMPDIR": str(self._folder),
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # loopback alone
            "PATH": os.pathsep.join([str(Path(python).parent), clean["PATH"]]),
        }
        if python != sys.executable:
            nodes.pop("PYTHONPATH", None)
        ports = [f"--port={free_port()}", f"--dashboard-port={dashboard}"]
        ports.append(f"--dashboard-agent-listen-port={free_port()}")
        with (self._folder / "said.txt").open("w") as said:
            self._process = subprocess.Popen(
                [python, *_RAY, "start", "--head", "--block", "--num-cpus=2", "--disable-usage-stats", *ports],
                env=nodes,
                cwd=self._folder,
                stdout=said,
                stderr=said,
            )

    def ray(self, *words: str) -> str:
        """What Ray's command line says."""
        finished = subprocess.run(
            [sys.executable, *_RAY, *words], env=self.environment, capture_output=True, text=True, timeout=120
        )
        return finished.stdout + finished.stderr

    def wait_until_it_takes_jobs(self) -> None:
        """Its agent takes some seconds to come up."""
        deadline = time.monotonic() + 90
        while "succeeded" not in (said := self.ray("job", "submit", "--", "true")):
            assert time.monotonic() < deadline, said
            time.sleep(1)

    def submit(self, *words: str, runtime_env: str | None = None) -> Job:
        """Submit from the root of the checkout, as the documentation says."""
        id = f"job-{len(self._jobs)}"
        options = ["--submission-id", id, "--working-dir", "."]
        options += ["--runtime-env", runtime_env] if runtime_env else []
        command = [sys.executable, *_RAY, "job", "submit", *options, "--", "python", *words]
        self._jobs.append(Job(self, id, command, self._folder / f"{id}.txt"))
        return self._jobs[-1]

    def shut_down(self) -> None:
        for job in self._jobs:
            job.leave()
        # All at once: asked to end, Ray waits half a minute for its agents.
        node = psutil.Process(self._process.pid)
        for process in [*node.children(recursive=True), node]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.wait(60)
        shutil.rmtree(self._folder, ignore_errors=True)
