"""The scripts that `ray job submit` runs are the command's stages, each by its name."""

import runpy
import sys
from pathlib import Path

import pytest

from nlft_ray.stages import STAGES

SCRIPTS = sorted((Path(__file__).parents[1] / "pipelines").glob("*.py"))


def test_every_stage_has_a_script() -> None:
    assert {path.stem for path in SCRIPTS} == {*STAGES, "run", "plan"}


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_is_its_stage(path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", [str(path), "--help"])
    runpy.run_path(str(path), run_name="__main__")
    assert f"Usage: nlft-ray {path.stem} " in capsys.readouterr().out
