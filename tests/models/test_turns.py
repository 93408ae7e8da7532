"""What ends a turn, whose words the instruction is, which day it is: for templates as well-known models bring them."""

import datetime
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import GenerationConfig

import nlft_ray
from nlft_ray.chain import run
from nlft_ray.cli.summary import show
from nlft_ray.config import EvaluateConfig, JudgeConfig, ModelConfig, PromptConfig, RunConfig, SampleConfig, ScoreConfig
from nlft_ray.errors import UserError
from nlft_ray.models import turns
from nlft_ray.models.engines.engine import Decoding
from nlft_ray.models.engines.transformers import Generator
from nlft_ray.models.generation import PromptedModel
from nlft_ray.models.loading import load_model
from nlft_ray.models.prompts import prompt_ids, prompts_fingerprint
from nlft_ray.models.turns import end_of_turn, read_turns
from nlft_ray.stages.score.worker import ScoreWorker
from nlft_ray.tables.manifest import PLAN, StageResult
from tests.random_models import byte_tokenizer, save_random_model
from tests.rows import QUESTION, example, read_table, write_table

_ALL = "{% for message in messages %}"
CHATML = (
    _ALL + "{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    + _ALL
    + "{% set role = 'model' if message.role == 'assistant' else message.role %}"
    "{{ '<start_of_turn>' + role + '\n' + message.content | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
PHI = (
    _ALL + "{% if message.role != 'system' %}{{ '<|' + message.role + '|>\n' + message.content + '<|end|>\n' }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
LLAMA = (
    "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
    "{% set head = '<|start_header_id|>system<|end_header_id|>\n\n' %}"
    "{{ head + 'Today Date: ' + date_string + '\n\n' }}"
    "{% if messages[0].role == 'system' %}{{ messages[0].content }}{% set messages = messages[1:] %}{% endif %}"
    "{{ '<|eot_id|>' }}"
    + _ALL
    + "{{ '<|start_header_id|>' + message.role + '<|end_header_id|>\n\n' + message.content + '<|eot_id|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
LLAMA_2 = (
    _ALL
    + "{{ ('[INST] ' + message.content + ' [/INST]' if message.role == 'user' else ' ' + message.content"
    + (" + ' ' + eos_token) }}{% endfor %}")
)
PLAIN_MARKS = _ALL + "{{ '### ' + message.role + ': ' + message.content + '\n' }}{% endfor %}"
TEMPLATES = {"<end_of_turn>": GEMMA, "<|end|>": PHI, "<|im_end|>": CHATML, "<|eot_id|>": LLAMA, "<end>": LLAMA_2}
YESTERDAY = datetime.date(2026, 7, 24)


def tokenizer_with(template: str | None) -> Any:
    tokenizer = byte_tokenizer(template)
    tokenizer.add_special_tokens({"bos_token": "<begin>", "additional_special_tokens": [*TEMPLATES][:-1]})
    return tokenizer


def save_model(folder: Path, template: str | None, **generation: Any) -> str:
    path = save_random_model(folder)
    tokenizer = tokenizer_with(template)
    tokenizer.save_pretrained(path)
    model = load_model(ModelConfig(path=path))
    model.resize_token_embeddings(len(tokenizer))
    model.generation_config = GenerationConfig(**generation)
    model.save_pretrained(path)
    return path


@pytest.mark.parametrize("token", TEMPLATES)
def test_a_turn_ends_as_the_chat_template_ends_it(random_llama: str, token: str) -> None:
    tokenizer = tokenizer_with(TEMPLATES[token])
    found = end_of_turn(tokenizer, ModelConfig(path=random_llama))
    assert (found.token, found.source) == (token, "by the chat template")
    assert found.id == tokenizer.convert_tokens_to_ids(token)


@pytest.mark.parametrize("template", [None, PLAIN_MARKS, "{{ raise_exception('no') }}"])
def test_where_the_template_says_nothing_others_do(tmp_path: Path, template: str | None) -> None:
    folder = save_model(tmp_path / "model", None, eos_token_id=[263, 264])
    tokenizer, model = tokenizer_with(template), ModelConfig(path=folder)
    found = end_of_turn(tokenizer, model)
    assert (found.id, found.source) == (263, "by the generation configuration")
    GenerationConfig(eos_token_id=[263, 1]).save_pretrained(folder)
    assert end_of_turn(tokenizer, model).id == 1, "the tokenizer's own, if it is one of several"
    (tmp_path / "model" / "generation_config.json").unlink()
    assert end_of_turn(tokenizer, model).source == "by the tokenizer"
    tokenizer.eos_token = None
    with pytest.raises(UserError, match=r"set model\.end_of_turn_token"):
        end_of_turn(tokenizer, model)


def test_a_setting_overrides_the_template(random_llama: str) -> None:
    tokenizer = tokenizer_with(GEMMA)
    found = end_of_turn(tokenizer, ModelConfig(path=random_llama, end_of_turn_token="<user>"))
    assert (found.id, found.source) == (3, "as set")
    with pytest.raises(UserError, match="is not a token"):
        end_of_turn(tokenizer, ModelConfig(path=random_llama, end_of_turn_token="<nope>"))


def inline(kind: Any, folder: Path, model: str, table: str, **changes: Any) -> Any:
    common = {"output": str(folder), "model": {"path": model}, "pool": {"backend": "inline"}, "max_reject_fraction": 1}
    return kind.model_validate({"input": table, **common, **changes})


def test_every_stage_ends_turns_alike_and_says_how(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, end = save_model(tmp_path / "model", GEMMA), 262
    stops: list[int] = []
    whole = Generator.__call__

    def watched(self: Generator, *arguments: Any) -> list[list[int]]:
        stops.extend(self.ends)
        return whole(self, *arguments)

    monkeypatch.setattr(Generator, "__call__", watched)
    questions = write_table(tmp_path / "q", "questions", [{"id": "1", **QUESTION}])
    examples = write_table(tmp_path / "e", "examples", [example("1", correct=False, instruction="Be brief.")])
    results: list[StageResult] = []
    for stage, kind, table in (
        (nlft_ray.sample, SampleConfig, questions),
        (nlft_ray.evaluate, EvaluateConfig, questions),
        (
            nlft_ray.judge,
            JudgeConfig,
            write_table(tmp_path / "r", "responses", [example("1", correct=False) | {"judgment": None}]),
        ),
        (nlft_ray.score, ScoreConfig, examples),
    ):
        tokens = {} if stage is nlft_ray.score else {"max_new_tokens": 2}
        results.append(stage(inline(kind, tmp_path / kind.__name__, model, table, **tokens)))
    assert set(stops) == {end}
    row = read_table(tmp_path / "ScoreConfig")["1"]
    assert row["input_ids"][-1] == row["standard_ids"][-1] == end
    for result in results:
        assert result.manifest.notes["end_of_turn"] == "<end_of_turn> (by the chat template)"
        assert result.manifest.identity.config["model"]["end_of_turn_token"] == "<end_of_turn>"
        assert result.manifest.identity.config["prompts"]["instruction_role"] == "user"
        show(result)
    printed = capsys.readouterr()
    assert "score: end of turn: <end_of_turn> (by the chat template)" in printed.err
    assert printed.out.count("<end_of_turn> (by the chat template)") == len(results)


def test_an_output_that_ended_turns_otherwise_is_refused(tmp_path: Path) -> None:
    """As one of before, whose plan leaves the tokenizer's own token unsaid; where it is the same, it goes on."""
    table = write_table(tmp_path / "e", "examples", [example("1", correct=True)])
    for name, template in (("other", GEMMA), ("same", LLAMA_2)):
        config = inline(ScoreConfig, tmp_path / name, save_model(tmp_path / f"model-{name}", template), table)
        result = nlft_ray.score(config)
        plan = json.loads((tmp_path / name / PLAN).read_text())
        plan["config"]["model"]["end_of_turn_token"] = None
        (tmp_path / name / PLAN).write_text(json.dumps(plan))
        if name == "same":
            assert result.manifest.identity.config["model"]["end_of_turn_token"] is None
            assert nlft_ray.score(config).reused
        else:
            with pytest.raises(UserError, match='end_of_turn_token: null → "<end_of_turn>"'):
                nlft_ray.score(config)


@pytest.mark.parametrize("template", [GEMMA, PHI])
def test_without_a_system_role_the_instruction_is_in_the_users_message(random_llama: str, template: str) -> None:
    """Whether the template refuses a system's message, or leaves it out without a word."""
    tokenizer, model, row = (
        tokenizer_with(template),
        ModelConfig(path=random_llama),
        example("1", correct=True, instruction="Brief."),
    )
    found = read_turns(tokenizer, model, PromptConfig())
    assert found.instruction_role == "user"
    assert "ahead of the user's message" in found.notes({})["instruction"]
    asked = PromptConfig(instruction_role="user")
    ids = prompt_ids(tokenizer, PromptConfig(instruction_role=found.instruction_role), "base", row)
    assert ids == prompt_ids(tokenizer, asked, "base", row)
    assert "Brief.\n\nWhat is 2 + 2?" in tokenizer.decode(ids)
    assert "instruction" not in read_turns(tokenizer, model, asked).notes({})


@pytest.mark.parametrize("template", [CHATML, LLAMA, None])
def test_a_system_role_is_used_where_there_is_one(random_llama: str, template: str | None) -> None:
    found = read_turns(tokenizer_with(template), ModelConfig(path=random_llama), PromptConfig())
    assert found.instruction_role == "system"
    assert "instruction" not in found.notes({})


def test_a_template_that_takes_nothing_is_refused_before_there_is_an_actor(random_llama: str) -> None:
    with pytest.raises(UserError, match="refuses a user's message: never"):
        read_turns(tokenizer_with("{{ raise_exception('never') }}"), ModelConfig(path=random_llama), PromptConfig())


def test_generation_inherits_nothing_from_the_models_files(tmp_path: Path) -> None:
    shaping = {"repetition_penalty": 5.0, "no_repeat_ngram_size": 1, "suppress_tokens": list(range(5, 90))}
    shaping |= {"do_sample": True, "top_k": 1, "temperature": 9.0, "min_p": 0.9, "max_length": 3}
    plain, shaped = save_model(tmp_path / "plain", None), str(tmp_path / "shaped")
    shutil.copytree(plain, shaped)
    (tmp_path / "shaped" / "generation_config.json").write_text(json.dumps(shaping))
    assert load_model(ModelConfig(path=shaped)).generation_config.repetition_penalty == 5.0
    rows = [{"question": text} for text in ("What is 2 + 2?", "Hi")]
    for decoding in (Decoding(max_new_tokens=16), Decoding(max_new_tokens=16, temperature=1.0)):
        first, second = (
            PromptedModel(ModelConfig(path=path), PromptConfig(), 2).answer("base", rows, decoding, seed=0)
            for path in (plain, shaped)
        )
        assert first == second


def test_a_template_is_told_the_date_that_was_set() -> None:
    tokenizer, row = tokenizer_with(LLAMA), example("1", correct=True)
    ids = prompt_ids(tokenizer, PromptConfig(date=YESTERDAY), "base", row)
    assert "Today Date: 24 Jul 2026" in tokenizer.decode(ids)
    today = prompt_ids(tokenizer, PromptConfig(), "base", row)
    assert datetime.datetime.now().strftime("Today Date: %d %b %Y") in tokenizer.decode(today)


def test_a_stage_goes_on_with_the_date_it_was_begun_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = save_model(tmp_path / "model", LLAMA)
    table = write_table(tmp_path / "e", "examples", [example(str(number), correct=True) for number in range(8)])
    config = inline(ScoreConfig, tmp_path / "out", model, table, pool={"backend": "inline", "rows_per_shard": 4})
    with monkeypatch.context() as patch:
        patch.setattr(turns, "today", lambda: YESTERDAY)
        whole = nlft_ray.score(config.model_copy(update={"output": str(tmp_path / "whole")}))
        score, calls = ScoreWorker.__call__, []

        def killed(self: ScoreWorker, *arguments: Any) -> Any:
            calls.append(1)
            if len(calls) > 1:
                raise KeyboardInterrupt
            return score(self, *arguments)

        patch.setattr(ScoreWorker, "__call__", killed)
        with pytest.raises(KeyboardInterrupt):
            nlft_ray.score(config)
    result = nlft_ray.score(config)
    assert result.manifest.identity == whole.manifest.identity
    assert result.manifest.identity.config["prompts"]["date"] == YESTERDAY.isoformat()
    assert result.manifest.notes["date"].startswith("2026-07-24")
    assert read_table(tmp_path / "out") == read_table(tmp_path / "whole")
    assert nlft_ray.score(config).reused


def test_other_templates_know_no_date(tmp_path: Path) -> None:
    table = write_table(tmp_path / "e", "examples", [example("1", correct=True)])
    config = inline(ScoreConfig, tmp_path / "out", save_model(tmp_path / "model", CHATML), table)
    assert "date" not in nlft_ray.score(config).manifest.identity.config["prompts"]
    told = config.model_copy(update={"prompts": PromptConfig(date=YESTERDAY)})
    assert nlft_ray.score(told).reused


def test_identity_and_fingerprint_are_those_of_before(random_llama: str) -> None:
    """Whether a setting is new, or is found out what it is: tables that were made earlier are still read."""
    tokenizer = byte_tokenizer()
    found = read_turns(tokenizer, ModelConfig(path=random_llama), PromptConfig())
    config = inline(ScoreConfig, Path("o"), random_llama, "i")
    named = found.identified(config).identity()
    assert named["model"]["end_of_turn_token"] is None
    assert named["prompts"]["instruction_role"] == "system"
    assert "date" not in named["prompts"]
    assert prompts_fingerprint(tokenizer, found.identified(config).prompts) == "0623cff83d495e2c"


def test_a_run_has_one_date(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "questions.jsonl").write_text(json.dumps({"q": "What is 2 + 2?", "a": "#### 4"}))
    columns = {"question": "q", "standard_answer": "a"}
    questions = {"source": str(tmp_path / "questions.jsonl"), "format": "columns", "columns": columns}
    config = RunConfig.model_validate(
        {
            "run_dir": str(tmp_path / "run"),
            "model": {"path": save_model(tmp_path / "model", LLAMA)},
            "questions": questions,
            "test_questions": questions,
            "sample": {"max_new_tokens": 4},
            "judge": {"max_new_tokens": 4},
            "evaluate": {"max_new_tokens": 4},
            "pool": {"backend": "inline"},
        }
    )

    def lost(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("nlft_ray.stages.train.job.train", lost)  # what comes before is what writes prompts
    with monkeypatch.context() as patch:
        patch.setattr(turns, "today", lambda: YESTERDAY)
        patch.setattr("nlft_ray.stages.judge.job.judge", lost)
        with pytest.raises(KeyboardInterrupt):
            run(config)
    with pytest.raises(KeyboardInterrupt):
        run(config)
    for stage in ("responses", "examples", "scored", "predictions/before"):
        manifest = json.loads((tmp_path / "run" / stage / "manifest.json").read_text())
        assert manifest["identity"]["config"]["prompts"]["date"] == YESTERDAY.isoformat()
