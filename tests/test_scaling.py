"""docs/scaling.md: its table is what the benchmark prints, its arithmetic is right, and the measurement runs."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import growth
import metadata

BASE = growth.Scoring(growth.MODELS["8B"])


def test_the_table_of_costs_is_the_benchmarks() -> None:
    lines = (ROOT / "docs" / "scaling.md").read_text().splitlines()
    table = growth.rows({name: replace(BASE, model=model) for name, model in growth.MODELS.items()})
    first = lines.index(table[0])
    assert lines[first : first + len(table)] == table


def test_the_example_by_hand_is_what_is_computed() -> None:
    flop_an_example = 2 * 8.03e9 * 1200
    examples_a_second = 0.4 * 989e12 / flop_an_example
    assert examples_a_second == pytest.approx(20.5, abs=0.05)
    assert BASE.gpu_hours(1_000_000) == pytest.approx(1e6 / examples_a_second / 3600)


def test_a_measured_rate_takes_the_place_of_the_assumption() -> None:
    measured = replace(BASE, tokens_per_second=1200.0)
    assert measured.gpu_hours(3600) == pytest.approx(1.0)
    spread = replace(measured, model=growth.MODELS["70B"])
    assert spread.gpu_hours(3600) == pytest.approx(4.0), "four GPUs hold one copy"


@pytest.mark.parametrize(("value", "text"), [(0.0333, "0.033"), (4.06, "4.1"), (13.5, "14"), (48_700, "49,000")])
def test_costs_are_rounded_to_two_figures(value: float, text: str) -> None:
    assert growth.rounded(value) == text


@pytest.mark.slow
def test_the_metadata_path_is_measured_on_real_files(tmp_path: Path) -> None:
    steps = metadata.measure(str(tmp_path), files=20, ids=100, with_ray=False)
    assert [step["step"] for step in steps][:2] == ["before", "plan shards"]
    assert json.loads((tmp_path / "scored" / "manifest.json").read_text())["rows_out"] == 100
