"""Configuration: strict, helpful, the same from a file, from words and back."""

from pathlib import Path

import pytest
import yaml

from nlft_ray.cli.arguments import load_config, to_yaml, validate
from nlft_ray.config import ImportConfig, RunConfig, SampleConfig, ScoreConfig, TrainConfig
from nlft_ray.errors import UserError

NEEDED = ["input=in", "output=out", "model.path=some/model"]


def mistakes(kind: type, words: list[str]) -> str:
    with pytest.raises(UserError) as caught:
        load_config(kind, None, words)
    return str(caught.value)


def test_words_lie_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "score.yaml"
    file.write_text("input: a\noutput: b\nmodel: {path: m, dtype: float32}\nhidden_window: 4\n")
    config = load_config(
        ScoreConfig, str(file), ["hidden_window=6", "--model.dtype", "bfloat16", "--too-long=truncate"]
    )
    assert (config.hidden_window, config.model.dtype, config.model.path, config.too_long) == (
        6,
        "bfloat16",
        "m",
        "truncate",
    )


def test_relative_folders_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = load_config(ScoreConfig, None, ["input=a", "output=s3://bucket/b", "model.path=some/model"])
    assert (config.input, config.output) == (str(tmp_path / "a"), "s3://bucket/b")
    assert config.model.path == "some/model"  # no such folder here, so a hub name


def test_every_mistake_is_reported_at_once() -> None:
    message = mistakes(
        ScoreConfig,
        ["modl.path=x", "input=3", "hidden_window=-1", "pool.min_workrs=2", "pool.min_workers=4", "pool.max_workers=2"],
    )
    assert "modl: unknown key. Did you mean 'model'?" in message
    assert "input: Input should be a valid string (got 3)" in message
    assert "hidden_window: Input should be greater than 0 (got -1)" in message
    assert "pool.min_workrs: unknown key. Did you mean 'min_workers'?" in message
    assert "pool: max_workers (2) is below min_workers (4)" in message, "combinations count although keys are wrong"
    assert "output: required" in message


def test_policy_numbers_are_checked_under_their_policy() -> None:
    message = mistakes(TrainConfig, [*NEEDED, "policy.name=origin", "policy.judge_standard_ration=4"])
    assert "Did you mean 'judge_standard_ratio'?" in message
    assert "policy.name" not in message
    assert "'nlft'" in mistakes(TrainConfig, [*NEEDED, "policy=nlfd"])


def test_a_policy_is_a_name_or_a_name_with_numbers() -> None:
    assert load_config(TrainConfig, None, [*NEEDED, "policy=cut"]).policy.name == "cut"
    tuned = load_config(TrainConfig, None, [*NEEDED, "policy.theta=0.9"]).policy
    assert (tuned.name, tuned.theta) == ("nlft", 0.9)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["temperature=0", "responses_per_question=2"], "responses_per_question must be 1"),
        (["verifier=my_check"], "not a verifier"),
        (["prompts.base=hello"], "template 'base' must name ['question']"),
        (['prompts.judge="{{question}} {{judgement}}"'], "names ['judgement']"),
        (['prompts.base="{{question"'], "does not parse"),
        (["pool.gpus_per_worker=-1"], "pool.gpus_per_worker"),
    ],
)
def test_impossible_values_name_what_is_allowed(words: list[str], complaint: str) -> None:
    assert complaint in mistakes(SampleConfig, [*NEEDED, *words])


def test_import_formats_go_with_their_settings() -> None:
    assert "`columns`" in mistakes(ImportConfig, ["source=x", "output=y", "format=columns"])
    assert "limit" in mistakes(ImportConfig, ["source=sandbox", "output=y", "format=sandbox"])


def test_a_run_names_each_policy_once() -> None:
    words = ["run_dir=r", "model.path=sandbox", "questions.source=q", "questions.format=gsm8k"]
    assert "each may stand once" in mistakes(RunConfig, [*words, "policies=[nlft,nlft]"])
    assert "stand in the list" in mistakes(RunConfig, [*words, "train.policy=nlft"])


@pytest.mark.parametrize("word", ["input", "--output"])
def test_a_lone_word_is_refused(word: str) -> None:
    with pytest.raises(UserError, match=r"key=value|needs a value"):
        load_config(ScoreConfig, None, [word])


def test_a_word_that_is_not_yaml_is_named() -> None:
    with pytest.raises(UserError, match="put it in quotes"):
        load_config(SampleConfig, None, ["prompts.base=[question"])


def test_a_missing_or_broken_file_is_one_message(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no file"):
        load_config(ScoreConfig, str(tmp_path / "absent.yaml"), [])
    (tmp_path / "broken.yaml").write_text("a: [1")
    with pytest.raises(UserError, match="configuration"):
        load_config(ScoreConfig, str(tmp_path / "broken.yaml"), [])


def test_the_printed_configuration_reads_back_to_the_same() -> None:
    config = load_config(TrainConfig, None, [*NEEDED, "policy=released", "lora=null", "schedule=linear"])
    assert validate(TrainConfig, yaml.safe_load(to_yaml(config))) == config
