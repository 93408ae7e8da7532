"""The command line as a person meets it: quick help, one message for a mistake, no stack trace."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nlft_ray.cli.main import app, main
from nlft_ray.stages import STAGES


@pytest.mark.system
@pytest.mark.smoke
def test_help_answers_within_half_a_second() -> None:
    seconds = []
    for _ in range(5):  # the best of five: other work on the machine must not decide
        began = time.perf_counter()
        finished = subprocess.run([sys.executable, "-m", "nlft_ray", "--help"], capture_output=True, text=True)
        seconds.append(time.perf_counter() - began)
    assert finished.returncode == 0
    assert all(name in finished.stdout for name in STAGES)
    assert min(seconds) < 0.5


@pytest.mark.parametrize("stage", STAGES)
def test_stage_help_shows_every_setting_with_its_docstring(stage: str, capsys: pytest.CaptureFixture[str]) -> None:
    main([stage, "--help"])
    shown = capsys.readouterr().out
    for name, field in STAGES[stage].load_config().model_fields.items():
        assert name in shown
        assert field.description, f"{stage}.{name} has no docstring"
        assert field.description.split()[0].strip("`") in shown


def test_print_config_shows_defaults_and_runs_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    main(["score", "--print-config", f"input={tmp_path}/a", f"output={tmp_path}/b", "model.path=sandbox"])
    assert "max_tokens_per_batch: null" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["score", "modl.path=x"], "Did you mean 'model'?"),
        (["scor"], "Did you mean"),
        (["score", "input=absent", "output=out", "model.path=sandbox"], "does not exist"),
        (["score", "--config", "absent.yaml"], "no file absent.yaml"),
    ],
)
def test_a_users_mistake_is_one_message_and_exit_code_2(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said


@pytest.mark.parametrize(("raised", "code"), [(KeyboardInterrupt(), 130), (SystemExit(signal.SIGTERM), 143)])
def test_who_is_stopped_says_that_it_goes_on_later(
    raised: BaseException, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ray makes a SystemExit of the SIGTERM that `ray job stop` sends."""

    def stopped(**settings: object) -> None:
        raise raised

    monkeypatch.setattr(app, "main", stopped)
    with pytest.raises(SystemExit) as caught:
        main([])
    assert caught.value.code == code
    assert "The same command continues" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("typed", "offered", "not_offered"),
    [
        ("nlft-ray ins", {"inspect"}, {"init"}),
        ("nlft-ray train --lora.", {"--lora.rank", "--lora.targets"}, {"--lora", "--config"}),
        ("nlft-ray run --train.lora.r", {"--train.lora.rank"}, set()),
        ("nlft-ray score model.pa", {"model.path="}, {"model="}),
        ("nlft-ray completion z", {"zsh"}, {"bash"}),
    ],
)
def test_a_shell_completes_commands_and_settings(
    typed: str,
    offered: set[str],
    not_offered: set[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in {
        "_NLFT_RAY_COMPLETE": "bash_complete",
        "COMP_WORDS": typed,
        "COMP_CWORD": str(len(typed.split()) - 1),
    }.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as caught:
        main([])
    assert caught.value.code == 0
    words = {line.partition(",")[2] for line in capsys.readouterr().out.splitlines()}
    assert offered <= words
    assert not words & not_offered


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_a_shell_asks_the_command(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    main(["completion", shell])
    script = capsys.readouterr().out
    assert f"_NLFT_RAY_COMPLETE={shell}_complete" in script
    assert "nlft-ray" in script


def test_a_first_word_that_ends_in_yaml_is_the_configuration(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "my.yaml").write_text("{input: a, output: b, model: {path: sandbox}, hidden_window: 3}")
    main(["score", str(tmp_path / "my.yaml"), "--print-config"])
    assert "hidden_window: 3" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["score", "absent.yml"])
    assert "--config: no file absent.yml" in capsys.readouterr().err


@pytest.mark.system
@pytest.mark.smoke
def test_an_import_needs_no_torch(tmp_path: Path) -> None:
    """Its summary neither, which would take longer than the import itself."""
    source, output = tmp_path / "questions.jsonl", tmp_path / "questions"
    source.write_text('{"question": "What is 2 + 2?", "answer": "#### 4"}\n')
    words = ["import", f"source={source}", "format=gsm8k", f"output={output}"]
    code = f"import sys; from nlft_ray.cli.main import main; main({words!r}); assert 'torch' not in sys.modules"
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert "rows out" in finished.stdout
