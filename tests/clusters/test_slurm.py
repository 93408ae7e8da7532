"""clusters/slurm.sh for real, on two "nodes" that are this machine: Slurm's own commands are stand-ins."""

import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.conftest import ROOT
from tests.rows import example, read_table, write_table

pytestmark = pytest.mark.system

SLURM = {
    "scontrol": 'tr "," "\\n" <<< "$3"',
    "hostname": "echo 127.0.0.1",
    # Runs the command on every node of the list, hence several times here, and ends it when it is told to.
    "srun": """
while [[ $1 == --* ]]; do [[ $1 == --nodelist=* ]] && nodes=${1#*=}; shift; done
trap 'kill $(jobs -p); wait' TERM
for node in ${nodes//,/ }; do "$@" & done
status=0
for job in $(jobs -p); do wait "$job" || status=$?; done
exit $status
""",
}


@pytest.fixture
def ray_folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="r-", dir="/tmp"))
    yield folder
    for process in processes_of(folder):
        process.kill()
    shutil.rmtree(folder, ignore_errors=True)


def processes_of(ray_folder: Path) -> list[psutil.Process]:
    """What still runs of a cluster that lives in this folder."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if any(str(ray_folder) in word for word in process.info["cmdline"] or []):
            found.append(process)
    return found


def submit(tmp_path: Path, ray_folder: Path, nodes: str, *words: str) -> subprocess.CompletedProcess[str]:
    """What `sbatch clusters/slurm.sh WORDS` would do."""
    tools = tmp_path / "slurm"
    tools.mkdir()
    for name, text in SLURM.items():
        (tools / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (tools / name).chmod(0o755)
    environment = os.environ | {
        "PATH": f"{tools}:{os.environ['PATH']}",
        "VENV": str(Path(sys.executable).parents[1]),
        "RAY_TMPDIR": str(ray_folder),
        "RAY_AUTH_TOKEN": "a-token-of-the-test",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1",  # others may join; a local cluster of these tests has switched it off
        "SLURM_JOB_ID": str(random.randrange(10_000)),
        "SLURM_JOB_NODELIST": nodes,
        "SLURM_CPUS_PER_TASK": "1",
        "SLURM_GPUS_ON_NODE": "0",
    }
    command = [str(ROOT / "clusters" / "slurm.sh"), *words]
    with (tmp_path / "log").open("w") as log:  # a pipe would stay open as long as anything of the cluster runs
        finished = subprocess.run(command, env=environment, stdout=log, stderr=subprocess.STDOUT, timeout=200)
    return subprocess.CompletedProcess(command, finished.returncode, (tmp_path / "log").read_text())


def test_a_slurm_job_runs_its_command_on_all_its_nodes(tmp_path: Path, ray_folder: Path, random_llama: str) -> None:
    rows = [example(str(number), correct=number % 2 == 0) for number in range(8)]
    examples = write_table(tmp_path / "examples", "examples", rows)
    words = [f"input={examples}", f"output={tmp_path / 'scored'}", f"model.path={random_llama}"]
    words += ["pool.rows_per_shard=4", "pool.min_workers=2", "pool.max_workers=2"]  # a CPU each: two nodes are needed
    finished = submit(tmp_path, ray_folder, "n1,n2", "score", *words)
    assert finished.returncode == 0, finished.stdout
    assert finished.stdout.count("Ray runtime started.") == 2
    assert set(read_table(tmp_path / "scored")) == {row["id"] for row in rows}
    assert processes_of(ray_folder) == [], "nothing stays behind"


def test_a_users_mistake_is_the_jobs_exit_code(tmp_path: Path, ray_folder: Path) -> None:
    finished = submit(tmp_path, ray_folder, "n1", "score", "modl.path=x")
    assert finished.returncode == 2, finished.stdout
    assert "Did you mean 'model'?" in finished.stdout
    assert processes_of(ray_folder) == []
