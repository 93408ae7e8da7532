"""`nlft-ray doctor`: what is there and what is missing, without a secret."""

import socket
from collections import namedtuple
from importlib import metadata

import pytest
from rich.console import Console

from nlft_ray.cli import doctor
from nlft_ray.cli.main import main

Usage = namedtuple("Usage", "total used free")


def said() -> tuple[bool, str]:
    """Whether nothing is missing, and what is shown."""
    console = Console(record=True, width=200)
    return doctor.doctor(console), console.export_text()


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def test_it_shows_versions_devices_disk_and_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:secret@mlflow.example")
    fine, shown = said()
    assert fine
    for package in ("torch", "ray", "transformers"):
        assert f"{package} " in shown
        assert metadata.version(package) in shown
    for words in ("CPU cores", "will be used", "weights in", "GiB free", "judge.server", "HF_TOKEN", "Nothing that is"):
        assert words in shown
    assert "secret@" not in shown
    assert "hf_secret" not in shown


def test_what_is_missing_is_said_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    version, others = doctor._version, {"peft": None, "click": "7.0"}
    monkeypatch.setattr(doctor, "_version", lambda name: others[name] if name in others else version(name))
    monkeypatch.setattr("shutil.disk_usage", lambda place: Usage(2**40, 2**40, 2**20))
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")  # where nobody listens
    fine, shown = said()
    assert not fine
    missing = [line for line in shown.splitlines() if line.startswith("Missing: ")]
    assert any(line.startswith("Missing: peft: not installed. pip install 'peft") for line in missing)
    assert any(line.startswith("Missing: click: 7.0. pip install 'click") for line in missing)
    assert any("runs, if written here: 0.0 GiB free" in line for line in missing)
    assert any("RAY_ADDRESS: 127.0.0.1:9: " in line and "mend the address" in line for line in missing)
    with pytest.raises(SystemExit) as caught:
        main(["doctor"])
    assert caught.value.code == 1
    assert "Missing: peft" in capsys.readouterr().out


def test_an_address_that_answers_is_told_from_a_dashboards(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        for form in ("127.0.0.1:{}", "ray://127.0.0.1:{}"):
            monkeypatch.setenv("RAY_ADDRESS", form.format(server.getsockname()[1]))
            assert [finding.note for finding in doctor._ray()] == ["it answers"]
        monkeypatch.setenv("RAY_ADDRESS", f"http://127.0.0.1:{server.getsockname()[1]}")
        (finding,) = doctor._ray()
        assert finding.wrong
        assert "RAY_API_SERVER_ADDRESS" in finding.note
