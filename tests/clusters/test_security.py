"""Nobody else gets in, and no secret gets out."""

import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
import ray

from nlft_ray.cli.arguments import load_config
from nlft_ray.config import JudgeConfig, ScoreConfig, WithModel
from nlft_ray.errors import UserError
from tests.clusters.planted import KEY_VARIABLE
from tests.conftest import ROOT
from tests.rows import example, write_table
from tests.stages.judge.fake_server import Reply, serving

SECRETS = {
    name: f"planted-{name.lower().replace('_', '-')}-7f3a91c5"
    for name in (KEY_VARIABLE, "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "RAY_AUTH_TOKEN")
}


def listening(process: psutil.Process) -> list[str]:
    try:
        return [found.laddr.ip for found in process.net_connections("inet") if found.status == psutil.CONN_LISTEN]
    except psutil.Error:
        return []


def is_loopback(address: str) -> bool:
    ip = ip_address(address)
    return (getattr(ip, "ipv4_mapped", None) or ip).is_loopback


def test_a_local_cluster_listens_on_loopback_alone(ray_local: None) -> None:
    ray.get(ray.remote(lambda: None).remote())  # a worker listens too
    found: dict[str, list[str]] = {}
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        found.setdefault(process.name(), []).extend(listening(process))
    assert found["gcs_server"], "these are the cluster's processes"
    assert found["raylet"]
    assert {address for addresses in found.values() for address in addresses if not is_loopback(address)} == set()


def test_a_local_cluster_refuses_who_brings_no_token(ray_local: None) -> None:
    address = ray.get_runtime_context().gcs_address
    ask = f"from ray._raylet import GcsClient; GcsClient(address={address!r}).internal_kv_get(b'any', b'key')"

    def said(environment: dict[str, str]) -> str:
        return subprocess.run([sys.executable, "-c", ask], env=environment, capture_output=True, text=True).stderr

    without = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    for environment in (without, without | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}):
        assert "InvalidAuthToken" in said(environment)
    assert not said(dict(os.environ))


@pytest.fixture
def ray_folder() -> Iterator[Path]:
    """Where a cluster keeps its logs and sockets; a socket's path must be short."""
    folder = Path(tempfile.mkdtemp(prefix="r-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def contents(folder: Path) -> Iterator[tuple[Path, str]]:
    """Every file as text; tables row by row, since they are compressed."""
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or not stat.S_ISREG(path.lstat().st_mode):
            continue
        if path.suffix == ".parquet":
            file = pq.ParquetFile(path)
            yield path, f"{file.read().to_pylist()} {file.metadata.metadata}"
        else:
            yield path, path.read_bytes().decode(errors="replace")


@pytest.mark.system
def test_no_planted_secret_is_written_anywhere(tmp_path: Path, ray_folder: Path, random_llama: str) -> None:
    rows = [example(str(number), correct=number == 0, judgment=None, question=f"{number} + 2?") for number in range(4)]
    write_table(tmp_path / "responses", "responses", rows)
    echo = {"error": {"message": f"your key is {SECRETS[KEY_VARIABLE]}"}}
    with serving(lambda request, number: Reply(status=400, body=echo) if number == 1 else Reply()) as server:
        command = [sys.executable, "-m", "tests.clusters.planted", str(tmp_path), server.base_url, random_llama]
        environment = os.environ | SECRETS | {"RAY_AUTH_MODE": "token", "RAY_TMPDIR": str(ray_folder)}
        environment |= {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}  # loopback alone
        finished = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
        sent = [headers["authorization"] for headers in server.headers]
    (tmp_path / "output.txt").write_text(finished.stdout + finished.stderr)
    found = dict([*contents(tmp_path), *contents(ray_folder)])
    assert finished.returncode == 0, found.get(tmp_path / "job.log", finished.stderr)
    assert sent == [f"Bearer {SECRETS[KEY_VARIABLE]}"] * 3, "the judge was given its key"
    leaks = [(str(path), name) for path, text in found.items() for name, secret in SECRETS.items() if secret in text]
    assert leaks == []
    naming = {path.name for path, text in found.items() if KEY_VARIABLE in text}
    assert "job.json" in naming, "the variable's name is no secret, and shows that the search looks into the files"
    assert any("[key]" in text for path, text in found.items() if path.suffix == ".parquet"), (
        "the echoed key was masked"
    )
    assert (tmp_path / "report" / "report.html") in found
    assert any(path.name.startswith("raylet") for path in found), "Ray's own logs are among them"


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (ScoreConfig, ["input=s3://AKIA123:sesame@bucket/in"]),
        (ScoreConfig, ["input=abfs://container@account/in?tenant_id=t&client_secret=sesame"]),
        (JudgeConfig, ["input=in", "server.base_url=https://me:sesame@judge.org/v1", "server.model=m"]),
    ],
)
def test_credentials_in_an_address_are_refused_and_not_repeated(kind: type[WithModel], words: list[str]) -> None:
    with pytest.raises(UserError, match="environment") as caught:
        load_config(kind, None, ["output=out", "model.path=m", *words])
    assert "sesame" not in str(caught.value)
