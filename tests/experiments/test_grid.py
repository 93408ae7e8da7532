"""A small grid from its file to its record, in this process."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from experiments.__main__ import app
from experiments.config import Experiment
from nlft_ray.analysis.markdown import escaped
from nlft_ray.cli.arguments import load_config
from nlft_ray.errors import UserError

pytestmark = pytest.mark.unit

SANDBOX = str(Path(__file__).parents[2] / "experiments/configs/sandbox.yaml")
METHODS = ["sft_worked", "rft", "star", "nlft"]
SMALL = [f"methods=[{','.join(METHODS)}]", "examples=[8]", "seeds=[1]", "test_questions.limit=20"]
SMALL += ["run.pool.backend=inline", "steps_per_question=0.5"]


def _run(output: Path) -> str:
    done = CliRunner().invoke(app, ["run", SANDBOX, f"output={output}", *SMALL], catch_exceptions=False)
    assert done.exit_code == 0
    return done.output


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("grid")
    _run(folder)
    return folder


def test_every_method_has_a_row_in_every_cell(grid: Path) -> None:
    rows = pq.read_table(grid / "outcomes.parquet").to_pylist()
    assert [(row["seed"], row["method"]) for row in rows] == [(seed, name) for seed in (1,) for name in METHODS]
    assert all(0 <= row["accuracy"] <= 1 for row in rows)
    by_method = {row["method"]: row for row in rows if row["seed"] == 1}
    assert by_method["sft_worked"]["rows_trained"] == 8
    assert by_method["rft"]["rows_trained"] <= by_method["star"]["rows_trained"] <= 8


def test_costs_are_those_of_the_stages_that_a_method_needs(grid: Path) -> None:
    rows = pq.read_table(grid / "outcomes.parquet").to_pylist()
    stages = {row["method"]: [name for name, _ in row["seconds"]] for row in rows if row["seed"] == 1}
    assert stages["nlft"] == ["sample", "judge", "score", "train"]
    assert stages["rft"] == ["sample", "train"]
    assert stages["sft_worked"] == ["train"]
    assert stages["star"][0] == "sample"
    trained = [row for row in rows if row["rows_trained"]]
    assert all(row["peak_bytes"] > 2**20 for row in trained)
    assert all((row["generated_tokens"] > 0) == (row["method"] != "sft_worked") for row in rows)


def test_answers_give_the_accuracies(grid: Path) -> None:
    answers = pq.read_table(grid / "answers.parquet").to_pylist()
    for row in pq.read_table(grid / "outcomes.parquet").to_pylist():
        own = [one["correct"] for one in answers if (one["method"], one["seed"]) == (row["method"], row["seed"])]
        assert len(own) == 20
        assert row["accuracy"] == sum(own) / 20


def test_the_record_names_its_command_and_shows_every_method(grid: Path) -> None:
    text = (grid / "results.md").read_text()
    assert "python -m experiments run" in text
    assert all(f"| {escaped(name)} |" in text for name in [*METHODS, "before"])
    for picture in ("accuracy-by-examples.png", "accuracy-by-seconds.png"):
        assert picture in text
        assert (grid / picture).read_bytes().startswith(b"\x89PNG")


def test_started_again_it_trains_nothing_and_says_the_same(grid: Path) -> None:
    before = pq.read_table(grid / "outcomes.parquet")
    weights = {path: path.stat().st_mtime_ns for path in grid.rglob("*.safetensors")}
    _run(grid)
    assert pq.read_table(grid / "outcomes.parquet").equals(before)
    assert weights == {path: path.stat().st_mtime_ns for path in grid.rglob("*.safetensors")}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["methods=[nlft,magic]"], "no method is called magic"),
        (["methods=[rft]"], "reference: nlft is none of the methods"),
        (["run.policies=[nlft]"], "the grid sets policies itself"),
        (["run.train.learning_rat=1"], "learning_rat"),
    ],
)
def test_a_mistake_in_the_file_is_named(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_config(Experiment, SANDBOX, words)
