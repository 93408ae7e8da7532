"""What a notebook shows: results as tables, and a bar that stays in its place."""

import builtins
import sys
from types import ModuleType
from typing import Any

import pytest

import nlft_ray
from nlft_ray.config import PlanConfig
from nlft_ray.log import RowProgress
from nlft_ray.tables.manifest import Identity, Manifest, StageResult
from tests.small_run import SmallRun


class ZMQInteractiveShell:
    """The name by which rich knows a notebook's shell."""


class Cell:
    """A cell's output, as IPython's `display` gives it: it holds one picture at a time."""

    def __init__(self) -> None:
        self.pictures: list[str] = []

    def display(self, picture: str, *, display_id: bool) -> "Cell":
        assert display_id
        self.pictures.append(picture)
        return self

    def update(self, picture: str) -> None:
        self.pictures.append(picture)


@pytest.fixture
def cell(monkeypatch: pytest.MonkeyPatch) -> Cell:
    """A cell of a notebook that this process seems to be in."""
    cell, display = Cell(), ModuleType("IPython.display")
    display.__dict__.update(HTML=str, display=cell.display)
    monkeypatch.setitem(sys.modules, "IPython", ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    monkeypatch.setattr(builtins, "get_ipython", ZMQInteractiveShell, raising=False)
    return cell


def test_progress_is_one_bar_that_is_drawn_anew(cell: Cell, capsys: pytest.CaptureFixture[str]) -> None:
    with RowProgress("<score>", 4, initial=1) as progress:
        progress.advance(1, tokens=5)  # too soon after the first for another picture
        progress.advance(2, tokens=5, note="loss 1.0")
    assert cell.pictures[0] == '<progress value="1" max="4"></progress> &lt;score&gt;: 1/4 rows'
    assert cell.pictures[-1].startswith('<progress value="4" max="4"></progress> &lt;score&gt;: 4/4 rows, loss 1.0, ')
    assert len(cell.pictures) == 2
    assert capsys.readouterr().err == ""


def test_elsewhere_progress_is_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with RowProgress("score", 2) as progress:
        progress.advance(2)
    assert "score: 2/2 rows" in capsys.readouterr().err


def html(result: Any) -> str:
    return result._repr_html_()


def test_a_stages_result_is_a_table() -> None:
    identity = Identity(stage="score", software_version="1", config={})
    manifest = Manifest(
        identity=identity, rows_in=1200, rows_out=1199, rows_rejected=1, reject_reasons={"<b>": 1}, seconds=2.0
    )
    shown = html(StageResult(output="/runs/my/scored", manifest=manifest))
    assert shown.startswith("<table><caption>score</caption>")
    assert '<td style="text-align:left">rows in</td><td style="text-align:right">1,200</td>' in shown
    assert "&lt;b&gt;" in shown
    assert "<b>" not in shown
    assert "/runs/my/scored" in shown


def test_a_run_and_a_plan_are_tables(small_run: SmallRun) -> None:
    shown = html(small_run.result)
    assert "<caption>Accuracy on the test questions" in shown
    assert ">nlft</td>" in shown
    assert ">round</th>" not in shown, "there is one round"
    planned = html(nlft_ray.plan(PlanConfig.model_validate({"model": {"path": "sandbox"}})))
    assert all(word in planned for word in (">score<", ">train<", "GiB needed"))
