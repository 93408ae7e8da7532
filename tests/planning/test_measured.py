"""Predictions beside what scoring and training really take. One size in the ordinary run; all of them by

pytest -s -m exhaustive tests/planning/test_measured.py
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "planning.py"
TOLERANCE = 0.15


def measured(tmp_path: Path, *words: str) -> list[dict[str, Any]]:
    found = tmp_path / "found.json"
    subprocess.run([sys.executable, str(BENCHMARK), *words, "--output", str(found)], check=True)
    return json.loads(found.read_text())


def check_ratios(found: list[dict[str, Any]]) -> None:
    far = {f"{row['size']} {row['case']}": row["ratio"] for row in found if abs(row["ratio"] - 1) > TOLERANCE}
    assert not far, "predicted / measured"


@pytest.mark.slow
def test_predictions_are_near_what_is_measured(tmp_path: Path) -> None:
    found = measured(tmp_path, "--sizes", "15M", "--cases", "lora", "full")
    assert len(found) == 2
    check_ratios(found)


@pytest.mark.timeout(1500)
@pytest.mark.exhaustive
def test_predictions_are_near_for_every_size_and_case(tmp_path: Path) -> None:
    found = measured(tmp_path)
    assert len(found) > 20
    check_ratios(found)
