"""Benchmarks run from start to end; what they measure is looked at by people."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

SCORING = Path(__file__).parents[1] / "benchmarks" / "scoring.py"


def test_scoring_measures_and_its_patterns_agree(shared: Path, tmp_path: Path) -> None:
    settings = ["--shape", "tiny", "--rows", "2", "--dtypes", "float32", "--instructions", "short", "--threads", "1"]
    settings += ["--patterns", "ours", "released", "--output", str(tmp_path / "found.json")]
    command = [sys.executable, str(SCORING), "--data", str(shared / "data" / "gsm8k"), *settings]
    subprocess.run(command, check=True)
    (table,) = json.loads((tmp_path / "found.json").read_text())["tables"]
    assert set(table["measures"]) == {"ours", "released"}
    assert all(found["seconds"] > 0 and found["peak_bytes"] > 0 for found in table["measures"].values())


def test_scoring_says_which_data_are_missing(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, str(SCORING), "--data", str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 1
    assert "no train.jsonl" in done.stderr


def test_training_measures(shared: Path, tmp_path: Path) -> None:
    settings = ["--shape", "tiny", "--steps", "1", "--warm-up-steps", "1", "--batch-size", "2", "--threads", "1"]
    settings += ["--dtypes", "float32", "--instructions", "short", "--micro-batch-size", "2"]
    settings += ["--patterns", "plain", "released", "--output", str(tmp_path / "found.json")]
    command = [sys.executable, str(SCORING.with_name("training.py")), "--data", str(shared / "data" / "gsm8k")]
    subprocess.run(command + settings, check=True)
    (table,) = json.loads((tmp_path / "found.json").read_text())["tables"]
    assert set(table["measures"]) == {"plain", "released"}
    assert all(found["seconds"] > 0 and found["peak_bytes"] > 0 for found in table["measures"].values())
