"""Every file in clusters/: understood by whoever reads it, and no misspelt key gets past."""

import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nlft_ray.cli.arguments import load_config
from nlft_ray.config import RunConfig, ScoreConfig, TrainConfig
from tests.clusters.schemas import checker, ray_start_options, read
from tests.conftest import ROOT

CLUSTERS = ROOT / "clusters"
FILES = sorted(CLUSTERS.rglob("*.yaml"))
JOBS: dict[str, Any] = {"score": ScoreConfig, "train": TrainConfig, "run": RunConfig}
INSTALLED = Path("/opt/nlft-ray")
"""The checkout in the image that clusters/Dockerfile makes."""


def tool(name: str) -> str:
    """A linter that was installed with the tests."""
    return str(Path(sys.executable).with_name(name))


def where(path: Path) -> str:
    return path.relative_to(CLUSTERS).as_posix()


@pytest.fixture
def check(shared: Path) -> Callable[[Path, Any], None]:
    crd = shared / "data" / "kuberay" / "ray.io_rayjobs.yaml"
    return lambda path, values: checker(path, crd)(values)


def mappings(values: Any, seen: set[int]) -> Iterator[dict[str, Any]]:
    """Every mapping once, however many aliases it has."""
    if isinstance(values, dict | list) and id(values) not in seen:
        seen.add(id(values))
        if isinstance(values, dict):
            yield values
        for value in values.values() if isinstance(values, dict) else values:
            yield from mappings(value, seen)


@pytest.mark.parametrize("path", FILES, ids=where)
def test_the_file_is_understood_and_every_misspelt_key_refused(path: Path, check: Callable[[Path, Any], None]) -> None:
    values = read(path)
    check(path, values)
    passed = []
    for mapping in mappings(values, set()):
        for key in list(mapping):
            kept = dict(mapping)
            mapping[f"{key}x"] = mapping.pop(key)
            try:
                check(path, values)
                passed.append(key)
            except (ValueError, KeyError):
                pass
            mapping.clear()
            mapping.update(kept)
    check(path, values)
    assert passed == [], "misspelt, these would go unnoticed"


def ray_jobs() -> dict[str, dict[str, Any]]:
    return {path.stem: read(path) for path in FILES if path.parent.name == "kuberay" and read(path)["kind"] == "RayJob"}


def groups_of(job: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {group["groupName"]: group for group in job["spec"]["rayClusterSpec"]["workerGroupSpecs"]}


def entrypoint_of(job: dict[str, Any]) -> Any:
    """The configuration that the job's command would run with, loaded by the real loader."""
    program, stage, *words = shlex.split(job["spec"]["entrypoint"])
    assert program == "nlft-ray"
    file = None
    if words[0] == "--config":
        file, words = str(ROOT / Path(words[1]).relative_to(INSTALLED)), words[2:]
    return load_config(JOBS[stage], file, words)


def room(group: dict[str, Any]) -> tuple[int, int]:
    """GPUs and CPUs of one pod."""
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    return int(limits["nvidia.com/gpu"]), int(limits["cpu"])


@pytest.mark.parametrize("name", ["score", "chain"])
def test_scoring_workers_fit_the_scoring_pods(name: str) -> None:
    job = ray_jobs()[name]
    pool, group = entrypoint_of(job).pool, groups_of(job)["score"]
    gpus, cpus = room(group)
    assert pool.label_selector == group["labels"]
    assert (pool.gpus_per_worker, pool.max_workers) == (gpus, group["maxReplicas"])
    assert pool.cpus_per_worker < cpus, "Ray Data's own tasks need a CPU beside the actor"
    assert group["minReplicas"] <= pool.min_workers


@pytest.mark.parametrize("name", ["train", "chain"])
def test_the_training_gang_fits_the_training_pods(name: str) -> None:
    job = ray_jobs()[name]
    config, group = entrypoint_of(job), groups_of(job)["train"]
    train = getattr(config, "train", config)
    gpus, cpus = room(group)
    assert train.label_selector == group["labels"]
    assert train.num_workers * train.gpus_per_worker == gpus * group["maxReplicas"]
    assert train.cpus_per_worker * gpus <= cpus


def test_ray_jobs_share_their_parts_and_keep_what_they_did() -> None:
    jobs = ray_jobs()
    chain = jobs["chain"]
    for name, job in jobs.items():
        spec, cluster = job["spec"], job["spec"]["rayClusterSpec"]
        assert spec["backoffLimit"] >= 1, "a retry is a new cluster"
        assert cluster["authOptions"] == {"mode": "token"}
        assert cluster["headGroupSpec"] == chain["spec"]["rayClusterSpec"]["headGroupSpec"]
        for group_name, group in groups_of(job).items():
            same = {"replicas": 0, "minReplicas": 0} if name == "train" else {}
            assert group | (same if group_name == "train" else {}) == groups_of(chain)[group_name]
            claims = [volume.get("persistentVolumeClaim") for volume in group["template"]["spec"]["volumes"]]
            assert {"claimName": read(CLUSTERS / "kuberay" / "storage.yaml")["metadata"]["name"]} in claims
        config = entrypoint_of(job)
        assert getattr(config, "output", getattr(config, "run_dir", "")).startswith("/shared/"), (
            "else a retry begins anew"
        )


@pytest.mark.parametrize("word", ["pool.label_selectr.pool=score", "train.num_worker=2"])
def test_a_misspelt_word_of_an_entrypoint_is_refused(word: str) -> None:
    job = ray_jobs()["chain"]
    job["spec"]["entrypoint"] += f" {word}"
    with pytest.raises(Exception, match="unknown key"):
        entrypoint_of(job)


@pytest.mark.system
@pytest.mark.smoke
@pytest.mark.parametrize("path", [path for path in FILES if path.stem in ("aws", "gcp")], ids=where)
def test_the_launchers_shell_commands_parse(path: Path) -> None:
    values = read(path)
    commands = [line for key, lines in values.items() if key.endswith("_commands") for line in lines]
    assert commands
    for command in commands:
        assert subprocess.run(["bash", "-n", "-c", command], capture_output=True).stderr == b"", command
    assert "--dashboard-host=127.0.0.1" in " ".join(values["head_start_ray_commands"])


@pytest.mark.system
@pytest.mark.smoke
def test_the_slurm_script_has_nothing_that_shellcheck_minds() -> None:
    script = CLUSTERS / "slurm.sh"
    found = subprocess.run([tool("shellcheck"), str(script)], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout) == (0, "")
    assert os.access(script, os.X_OK)


@pytest.mark.system
@pytest.mark.smoke
def test_the_container_file_has_nothing_that_hadolint_minds(tmp_path: Path) -> None:
    file = CLUSTERS / "Dockerfile"
    found = subprocess.run([tool("hadolint"), str(file)], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout) == (0, "")
    broken = tmp_path / "Dockerfile"
    broken.write_text(file.read_text().replace("USER 1000", "USR 1000"))
    assert subprocess.run([tool("hadolint"), str(broken)], capture_output=True, check=False).returncode != 0
    for line in file.read_text().splitlines():
        if line.startswith("COPY "):
            assert all((ROOT / source).exists() for source in line.split()[1:-1]), line


def test_the_image_holds_what_the_jobs_name() -> None:
    text = (CLUSTERS / "Dockerfile").read_text()
    assert f"WORKDIR {INSTALLED}\n" in text
    users = {
        str(job["spec"]["submitterPodTemplate"]["spec"]["securityContext"]["runAsUser"]) for job in ray_jobs().values()
    }
    assert users == {text.partition("\nUSER ")[2].split()[0]}


def test_a_ray_start_option_that_does_not_exist_is_found() -> None:
    assert ray_start_options(["ray stop; ray start --head --port=6379"]) == ["--head", "--port"]
    with pytest.raises(ValueError, match="dashbord"):
        ray_start_options(["ray start --head --dashbord-host=127.0.0.1"])


def test_a_job_brings_what_the_package_needs() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = [*project["dependencies"], *project["optional-dependencies"]["server"]]
    constraint, *packages = read(CLUSTERS / "runtime_env.yaml")["pip"]["packages"]
    assert packages == needed
    option, _, file = constraint.partition(" ${RAY_RUNTIME_ENV_CREATE_WORKING_DIR}/")
    assert option == "--constraint"
    pinned = {line.partition("==")[0] for line in (ROOT / file).read_text().splitlines() if "==" in line}
    assert {re.split(r"[\[<>=]", package)[0].replace("_", "-") for package in needed} <= pinned
