"""The chain on the sandbox, small: every stage once, then nothing twice."""

import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer

import nlft_ray
from nlft_ray.chain import _epochs, _Round
from nlft_ray.cli.arguments import load_config, validate
from nlft_ray.cli.main import main
from nlft_ray.cli.summary import show
from nlft_ray.config import ModelConfig, RunConfig, TrainOptions
from nlft_ray.errors import UserError
from nlft_ray.models.loading import model_fingerprint
from nlft_ray.sandbox import QUICKSTART
from nlft_ray.storage.folder import Folder
from nlft_ray.tables.manifest import read_manifest
from tests.models.hub import served
from tests.rows import read_table
from tests.small_run import SmallRun, small
from tests.stages.judge.fake_server import Reply, serving


@pytest.fixture(scope="module")
def run_dir(small_run: SmallRun) -> Path:
    return small_run.folder


def test_the_chain_runs_every_stage_and_then_none_twice(run_dir: Path, small_run: SmallRun) -> None:
    result = small_run.result
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
    from tests.rows import read_rejects

    return read_rejects(path)


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


def test_a_further_round_answers_anew_with_the_model_of_the_one_before(run_dir: Path) -> None:
    nlft_ray.run(small(run_dir))
    result = nlft_ray.run(small(run_dir, "rounds=2"))
    first, second = result.outcomes
    assert (first.round, second.round) == (1, 2)
    assert first.train.reused
    assert second.train.manifest.identity.config["model"]["path"] == first.export.output
    assert second.before == first.evaluate
    for stage in ("responses", "examples", "scored"):
        folder = Folder(str(run_dir / "round-2" / "nlft" / stage))
        model = read_manifest(folder, table=stage).identity.model
        assert model == model_fingerprint(ModelConfig(path=first.export.output))
    assert (run_dir / "round-2" / "nlft" / "report" / "report.html").is_file()
    console = Console(record=True, width=160)
    show(result, console)
    assert "model nlft 2" in console.export_text()
    again = nlft_ray.run(small(run_dir, "rounds=2"))
    assert all(outcome.train.reused and outcome.export.reused for outcome in again.outcomes)


def test_refresh_trains_each_epoch_on_scores_of_the_model_by_then(run_dir: Path) -> None:
    nlft_ray.run(small(run_dir))
    words = ["refresh=true", "train.epochs=2", "policies=[origin]"]
    outcome = nlft_ray.run(small(run_dir, *words)).outcomes[0]
    between = run_dir / "refresh" / "origin" / "after-epoch-1"
    assert outcome.train.manifest.identity.config["model"]["path"] == str(between / "model")
    before, after = (read_table(folder) for folder in (run_dir / "scored", between / "scored"))
    assert before.keys() == after.keys()
    assert all(before[id]["logp_base"] != after[id]["logp_base"] for id in before), "the same responses, another model"
    again = nlft_ray.run(small(run_dir, *words)).outcomes[0]
    assert again.train.reused
    assert again.training_seconds == outcome.training_seconds


def test_a_run_sends_its_model_once_the_card_tells_its_accuracy(run_dir: Path, tmp_path: Path) -> None:
    nlft_ray.run(small(run_dir))
    with pytest.MonkeyPatch.context() as patch, served(tmp_path, patch) as hub:
        patch.setenv("HF_TOKEN", hub.writer)
        result = nlft_ray.run(small(run_dir, "export.push_to_hub=someone/mine", "export.hub_private=false"))
        assert all(outcome.export.reused for outcome in result.outcomes)
        assert hub.visibility == {"someone/mine": "public"}
        card = (hub.folder / "someone" / "mine" / "README.md").read_text()
    assert "Accuracy on 20 test questions" in card


def test_a_changed_setting_is_refused_by_name_and_a_later_stage_alone_is_redone(run_dir: Path) -> None:
    nlft_ray.run(small(run_dir))
    with pytest.raises(UserError, match=r"config\.max_new_tokens: 64 → 32"):
        nlft_ray.run(small(run_dir, "evaluate.max_new_tokens=32"))
    redone = nlft_ray.run(small(run_dir, "evaluate.max_new_tokens=32", "overwrite=true")).outcomes[0]
    assert redone.train.reused
    assert redone.export.reused
    assert redone.evaluate is not None
    assert not redone.evaluate.reused


@pytest.mark.parametrize(
    ("schedule", "expected"), [("constant", [1.0, 1.0]), ("linear", [0.75, 0.25]), ("cosine", [0.8536, 0.1464])]
)
def test_refreshed_epochs_take_the_schedules_rate_in_their_middle(schedule: str, expected: list[float]) -> None:
    whole = validate(TrainOptions, {"epochs": 2, "schedule": schedule, "learning_rate": 1.0, "warmup_fraction": 0.2})
    pieces = _epochs(whole)
    assert [piece.learning_rate for piece in pieces] == pytest.approx(expected, abs=1e-4)
    assert [piece.warmup_fraction for piece in pieces] == [0.4, 0.0]
    assert len({piece.seed for piece in pieces}) == 2
    assert _epochs(whole.model_copy(update={"epochs": 1})) == [whole.model_copy(update={"epochs": 1})]


@pytest.mark.usefixtures("ray_local")
def test_a_server_judges_while_there_is_no_node_that_scores(tmp_path: Path) -> None:
    data = tmp_path / "responses.jsonl"
    data.write_text('{"q": "2 + 2?", "r": "5", "v": "incorrect"}\n')
    with serving(lambda request, number: Reply()) as server:
        words = [f"run_dir={tmp_path / 'run'}", "model.path=sandbox", f"questions.source={data}"]
        words += ["questions.format=columns", "questions.columns={question: q, response: r, verdict: v}"]
        words += [f"judge.server.base_url={server.base_url}", "judge.server.model=judge"]
        config = load_config(RunConfig, None, [*words, "pool.label_selector.pool=nowhere", "pool.gpus_per_worker=1"])
        chain = _Round(config, 1, Folder(config.run_dir), config.model)
        examples = chain.examples(chain.imported("questions", config.questions))
    assert [row["judgment"] for row in read_table(examples.output).values()] == ["It adds one too many."]


def test_rounds_need_questions(tmp_path: Path) -> None:
    data = tmp_path / "examples.jsonl"
    data.write_text('{"q": "2 + 2?", "r": "4", "v": "correct"}\n')
    columns = "{question: q, response: r, verdict: v}"
    words = [f"run_dir={tmp_path / 'run'}", "model.path=sandbox", "rounds=2"]
    words += [f"questions.source={data}", "questions.format=columns", f"questions.columns={columns}"]
    with pytest.raises(UserError, match="2 rounds answer the questions anew"):
        nlft_ray.run(load_config(RunConfig, None, words))


def test_refresh_refuses_a_number_of_steps() -> None:
    with pytest.raises(UserError, match=r"train\.max_steps"):
        load_config(RunConfig, str(QUICKSTART), ["refresh=true", "train.max_steps=3"])


def test_the_quickstart_prints_its_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    main(["quickstart", "--print-config"])
    assert "path: sandbox" in capsys.readouterr().out


@pytest.mark.system
@pytest.mark.smoke
def test_importing_the_package_imports_no_engine() -> None:
    code = "import sys, nlft_ray; print([name for name in ('torch', 'ray', 'pyarrow') if name in sys.modules])"
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert finished.stdout.strip() == "[]"
