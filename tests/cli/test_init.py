"""`nlft-ray init`: what it writes, `run` takes; what it cannot guess, it says."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nlft_ray.cli.arguments import load_config
from nlft_ray.cli.init import init
from nlft_ray.cli.main import main
from nlft_ray.config import RunConfig
from nlft_ray.errors import UserError

QUESTION = "What is {} + 2?"


def rows(names: dict[str, str], count: int = 5) -> list[dict[str, Any]]:
    """Rows whose columns have these names, each filled by its template."""
    return [{name: text.format(number) for name, text in names.items()} for number in range(count)]


def lines(path: Path, records: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def written(tmp_path: Path, model: str, data: str, *columns: str, test: str | None = None) -> tuple[RunConfig, str]:
    """What `run` makes of what is written, and the file itself."""
    target = tmp_path / "run.yaml"
    init(model, data, test, columns, str(target))
    return load_config(RunConfig, str(target), []), target.read_text()


def test_run_takes_what_is_written_as_it_is(
    tmp_path: Path, random_llama: str, capsys: pytest.CaptureFixture[str]
) -> None:
    data = lines(tmp_path / "train.jsonl", rows({"question": QUESTION, "answer": "It is so.\n#### {}"}))
    test = lines(tmp_path / "test.jsonl", rows({"question": QUESTION, "answer": "#### {}"}, 2))
    target = tmp_path / "mine.yaml"
    main(["init", "--model", random_llama, "--data", data, "--test", test, "--output", str(target)])
    assert f"nlft-ray run {target}" in capsys.readouterr().err
    main(["run", str(target), "--print-config"])
    shown = capsys.readouterr().out
    config = load_config(RunConfig, str(target), [])
    assert f"source: {data}" in shown
    assert (config.questions.format, config.questions.source) == ("gsm8k", data)
    assert config.test_questions is not None
    assert config.test_questions.source == test
    assert config.model.path == random_llama
    assert config.run_dir.endswith("runs/train")
    assert config.train.lora is not None
    assert config.sample.max_new_tokens == config.evaluate.max_new_tokens < 512, "as the model has room"
    text = target.read_text()
    assert "5 rows of questions; longest texts, in tokens: question " in text
    assert "takes 512 tokens at most, and has a chat template" in text
    assert "GiB of " in text, "by the planner"
    with pytest.raises(UserError, match="is there already"):
        init(random_llama, data, None, (), str(target))


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"prompt": QUESTION, "solution": "#### {}"}, {"question": "prompt", "standard_answer": "solution"}),
        (
            {"system": "Be kind.", "problem": QUESTION, "answer": "{}", "completion": "{}"},
            {
                "question": "problem",
                "standard_answer": "answer",
                "response": "completion",
                "instruction": "system",
            },
        ),
        (
            {"question": QUESTION, "response": "{}", "critique": "It is wrong.", "extra": "x"},
            {"question": "question", "response": "response", "judgment": "critique"},
        ),
    ],
    ids=["questions", "responses", "examples"],
)
def test_columns_are_guessed_by_their_names(
    tmp_path: Path, random_llama: str, columns: dict[str, str], expected: dict[str, str]
) -> None:
    pq.write_table(pa.Table.from_pylist(rows(columns)), tmp_path / "data.parquet")
    config, text = written(tmp_path, random_llama, str(tmp_path / "data.parquet"))
    assert config.questions.format == "columns"
    assert config.questions.columns == expected
    assert ("not used: extra" in text) == ("extra" in columns)


@pytest.mark.parametrize("score", [True, False])
def test_the_released_formats_are_known_by_their_columns(tmp_path: Path, random_llama: str, score: bool) -> None:
    names = {"instruction": "Add.", "input": QUESTION, "output": "{}", "judgment": "Wrong."}
    data = lines(tmp_path / "d.jsonl", [row | ({"score": 3} if score else {}) for row in rows(names)])
    config, text = written(tmp_path, random_llama, data)
    assert config.questions.format == ("nlft" if score else "cut")
    assert "rows of examples" in text
    assert "sample:" not in text


def test_what_cannot_be_guessed_is_named(tmp_path: Path, random_llama: str) -> None:
    data = lines(tmp_path / "d.jsonl", rows({"a": QUESTION, "b": "#### {}"}))
    with pytest.raises(UserError, match=r"has the columns a, b; which .* question .* Name it: --column question=…"):
        written(tmp_path, random_llama, data)
    with pytest.raises(UserError, match=r"columns a, b; .* standard answer .*--column standard_answer=…"):
        written(tmp_path, random_llama, data, "question=a")
    with pytest.raises(UserError, match=r"has no column c; it has a, b"):
        written(tmp_path, random_llama, data, "question=a", "standard_answer=c")
    with pytest.raises(UserError, match=r"--column: q=a is not OURS=THEIRS"):
        written(tmp_path, random_llama, data, "q=a")
    with pytest.raises(UserError, match=r"--data: there is no file or folder .*absent.jsonl"):
        written(tmp_path, random_llama, str(tmp_path / "absent.jsonl"))
    config, _ = written(tmp_path, random_llama, data, "question=a", "standard_answer=b")
    assert config.questions.columns == {"question": "a", "standard_answer": "b"}


def test_answers_that_nothing_can_compare_are_said(
    tmp_path: Path, random_llama: str, capsys: pytest.CaptureFixture[str]
) -> None:
    data = lines(tmp_path / "d.jsonl", rows({"question": QUESTION, "answer": "Paris"}, 4))
    _, text = written(tmp_path, random_llama, data)
    assert "4 standard answers hold no number" in capsys.readouterr().err
    assert "# verifier: my_module:my_check" in text
