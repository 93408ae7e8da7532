"""The chain on the sandbox, small: every stage once, then nothing twice."""

import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer

import nlft_ray
from nlft_ray.cli import main
from nlft_ray.config import RunConfig
from nlft_ray.errors import UserError
from nlft_ray.sandbox import QUICKSTART
from nlft_ray.settings import load_config
from nlft_ray.summary import show
from tests.tables import read_table

SMALL = ["questions.limit=16", "test_questions.limit=20", "policies=[nlft]", "train.epochs=1", "pool.max_workers=1"]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("chain") / "run"


def small(run_dir: Path, *words: str) -> RunConfig:
    return load_config(RunConfig, str(QUICKSTART), [*SMALL, f"run_dir={run_dir}", *words])


@pytest.mark.usefixtures("ray_local")
def test_the_chain_runs_every_stage_and_then_none_twice(run_dir: Path) -> None:
    result = nlft_ray.run(small(run_dir))
    responses, examples, scored = (read_table(run_dir / name) for name in ("responses", "examples", "scored"))
    assert len(responses) + len(read_table_rejects(run_dir / "responses")) == 16
    assert set(scored) == set(examples) <= set(responses)
    assert all((row["verdict"] == "incorrect") == (row["judgment"] is not None) for row in examples.values())
    assert all(
        row["response_ids"] == scored[id]["input_ids"][scored[id]["response_start"] :] for id, row in examples.items()
    )
    assert result.before is not None
    assert result.before.manifest.rows_out == 20
    folder = result.outcomes[0].export.output
    AutoModelForCausalLM.from_pretrained(folder)
    AutoTokenizer.from_pretrained(folder)
    again = nlft_ray.run(small(run_dir))
    outcome = again.outcomes[0]
    stages = [again.examples, again.scored, again.before, outcome.train, outcome.export, outcome.evaluate]
    assert all(stage is not None and stage.reused for stage in stages)


def read_table_rejects(path: Path) -> list[dict[str, object]]:
    from tests.tables import read_rejects

    return read_rejects(path)


@pytest.mark.usefixtures("ray_local")
def test_the_summary_shows_the_table_a_coloured_example_and_paths(run_dir: Path) -> None:
    result = nlft_ray.run(small(run_dir))
    console = Console(record=True, width=160, force_terminal=True, color_system="truecolor")
    show(result, console)
    styled = console.export_text(styles=True, clear=False)
    plain = console.export_text()
    assert "nlft" in plain
    assert "%" in plain
    assert str(run_dir / "models" / "nlft") in plain
    assert "Losing tokens" in plain
    assert "\x1b[1;37;41m" in styled, "losing tokens stand on red"


@pytest.mark.usefixtures("ray_local")
def test_a_changed_setting_is_refused_by_name_and_a_later_stage_alone_is_redone(run_dir: Path) -> None:
    nlft_ray.run(small(run_dir))
    with pytest.raises(UserError, match=r"config\.max_new_tokens: 64 → 32"):
        nlft_ray.run(small(run_dir, "evaluate.max_new_tokens=32"))
    redone = nlft_ray.run(small(run_dir, "evaluate.max_new_tokens=32", "overwrite=true")).outcomes[0]
    assert redone.train.reused
    assert redone.export.reused
    assert redone.evaluate is not None
    assert not redone.evaluate.reused


def test_the_quickstart_prints_its_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    main(["quickstart", "--print-config"])
    assert "path: sandbox" in capsys.readouterr().out


def test_importing_the_package_imports_no_engine() -> None:
    code = "import sys, nlft_ray; print([name for name in ('torch', 'ray', 'pyarrow') if name in sys.modules])"
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert finished.stdout.strip() == "[]"
