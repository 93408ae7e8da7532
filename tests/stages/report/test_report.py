"""What the stage writes: files and their places, refusals, the story of the run, and the packed facts."""

import base64
import itertools
import json
import os
import shutil
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import ModelCard

from nlft_ray.analysis.run import read_run
from nlft_ray.analysis.saliency import token_texts
from nlft_ray.cli.main import main
from nlft_ray.config import ModelConfig
from nlft_ray.core.policies import POLICIES
from nlft_ray.errors import UserError
from nlft_ray.models.loading import load_tokenizer
from nlft_ray.stages import STAGES
from nlft_ray.stages.report.charts import Chart, training_charts
from nlft_ray.stages.report.page import json_for_script
from nlft_ray.stages.report.policies import policies_for_page
from nlft_ray.stages.report.tokens import pack
from nlft_ray.storage.folder import Folder
from tests.random_models import byte_tokenizer
from tests.rows import read_table
from tests.stages.report.support import HOSTILE, HOSTILE_ROWS, random_rows, write_export, write_report, write_scored


def data_of(html: Path) -> Any:
    text = html.read_text(encoding="utf-8")
    return json.loads(text.partition('id="report-data">')[2].partition("</script>")[0])


def test_a_run_is_told_from_rows_to_accuracy(html: Path) -> None:
    text = html.read_text(encoding="utf-8")
    assert "Accuracy on the test questions" in text
    assert "66.7 %  (10.0 to 90.0), 2 of 3" not in text
    assert "33.3 %  (10.0 to 90.0), 1 of 3" in text
    assert "nlft: 1 fixed, 1 broken, 1 still wrong, 0 right before and after" in text
    assert "2 × no &lt;b&gt;weight&lt;/b&gt;" in text
    assert text.count("<polyline") == 2 * 6  # six charts, two policies; rft's unlikelihood and anchor are lines at zero
    assert "&lt;i&gt;0&lt;/i&gt;" in text
    assert data_of(html)["policy"]["theta"] == 0.9, "it opens with the policy that was trained"


def test_the_markdown_stands_beside_it(html: Path) -> None:
    text = html.with_suffix(".md").read_text(encoding="utf-8")
    assert "| nlft | 33.3 % | 10.0 to 90.0 % | 1 of 3 |" in text
    assert "| nlft | 1 | 1 | 1 | 0 |" in text
    assert r"2 × no &lt;b>weight&lt;/b>" in text
    assert "| nlft | 10 | 0.1 | 0.01 | 0.02 | 400 | 5 |" in text


def test_the_cards_of_exported_models_learn_the_results(run: str, random_llama: str, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    write_export(copy / "models" / "nlft", copy, random_llama)
    card = copy / "models" / "nlft" / "README.md"
    assert "Accuracy" not in card.read_text()
    write_report(str(copy), output=str(tmp_path / "report.html"))
    told = ModelCard.load(card)
    assert "Accuracy on 3 test questions: **33.3 %" in told.text
    assert "| rft | 100.0 %" in told.text
    assert told.data.eval_results[0].metric_value == 0.3333
    card.write_text("---\na: [\n---\n" + told.text)
    write_report(str(copy), output=str(tmp_path / "report.html"))
    assert card.read_text().startswith("---\na: [\n---\n"), "what cannot be read is left alone"


def test_texts_come_from_the_table_that_was_scored(html: Path) -> None:
    examples = {example["id"]: example for example in data_of(html)["sets"][0]["examples"]}
    hostile = examples[HOSTILE_ROWS[0]["id"]]
    assert hostile["question"] == f"Q {HOSTILE}"
    assert hostile["judgment"] == f"J {HOSTILE}"
    assert "".join(hostile["tokens"]).startswith(f"R {HOSTILE}")


def test_a_scored_folder_alone_shows_the_prompt(
    random_llama: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scored = write_scored(tmp_path / "scored", random_rows(5), random_llama)
    main(["report", scored, "policy.name=cut", "max_examples=3", f"output={tmp_path}/out/page.html"])
    assert f"{tmp_path}/out/page.html" in "".join(capsys.readouterr().out.split("\n"))
    assert sorted(os.listdir(tmp_path / "out")) == ["page.html", "page.md"]
    data = data_of(tmp_path / "out" / "page.html")
    assert data["policy"] == {"name": "cut", "loss_scale": 1.0, "judge_base_ratio": 1.1, "unlikelihood_weight": 1.0}
    assert len(data["sets"][0]["examples"]) == 3
    row = read_table(scored)["random-0"]
    prompt = load_tokenizer(ModelConfig(path=random_llama)).decode(row["input_ids"][:3])
    assert data["sets"][0]["examples"][0]["question"] == prompt


def test_what_cannot_be_reported_is_refused(random_llama: str, run: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="must be a scored folder, or a run"):
        write_report(str(tmp_path))
    with pytest.raises(UserError, match="this stage reads scored"):
        write_report(f"{run}/examples")
    with pytest.raises(UserError, match="holds the output of stage 'score'"):
        write_report(run, output=f"{run}/scored")
    unnamed = write_scored(tmp_path / "scored", random_rows(1), "")
    manifest = json.loads((tmp_path / "scored" / "manifest.json").read_text())
    manifest["identity"]["config"] = {}
    (tmp_path / "scored" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"set model\.path"):
        write_report(unnamed)
    manifest["identity"]["tokenizer"] = "another"
    (tmp_path / "scored" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="another tokenizer"):
        write_report(unnamed, model={"path": random_llama})
    with pytest.raises(UserError, match=r"^compare: .* holds ids of another tokenizer.*Both must have the same"):
        write_report(run, compare=unnamed)


def test_a_curve_is_logarithmic_where_another_policy_would_flatten_it() -> None:
    def chart(high: float) -> Chart:
        courses = {"low": [0.05, 0.0, 0.01], "high": [high, high, high]}
        metrics = {
            name: [{"step": step, "gradient_norm": value} for step, value in enumerate(values, start=1)]
            for name, values in courses.items()
        }
        (found,) = training_charts(metrics)
        return found

    linear = chart(0.1)
    assert [label for _, label in linear.ticks] == ["0", "0.05", "0.1"]
    assert linear.lines[0].points == "0.0,60.0 160.0,120.0 320.0,108.0"
    logarithmic = chart(10.0)
    assert logarithmic.title == "Gradient norm, logarithmic"
    assert [label for _, label in logarithmic.ticks] == ["0.01", "0.1", "1", "10"]
    assert logarithmic.lines[0].points == "0.0,92.0 160.0,120.0 320.0,120.0"
    assert logarithmic.lines[1].points == "0.0,0.0 160.0,0.0 320.0,0.0"


def test_it_is_written_anew_each_time(run: str, html: Path) -> None:
    before = html.read_bytes()
    assert write_report(run).read_bytes() == before
    names = {record.name for record in read_run(Folder(run), list(STAGES)).stages}
    assert names >= {"scored", "trained/nlft", "predictions/before"}


def test_packed_columns_are_exact() -> None:
    values = np.random.default_rng(0).normal(size=1000).astype("<f4")
    grouped = np.frombuffer(zlib.decompress(base64.b64decode(pack(values))), dtype=np.uint8)
    np.testing.assert_array_equal(grouped.reshape(4, -1).T.copy().view("<f4").ravel(), values)


def test_data_cannot_leave_its_script_element() -> None:
    text = str(json_for_script({HOSTILE: [HOSTILE]}))
    assert not set("<>&\u2028\u2029") & set(text)
    assert json.loads(text) == {HOSTILE: [HOSTILE]}


@pytest.mark.parametrize("text", ["2 + 2 = 4", "  two  spaces\n\n", "👩‍👩‍👧 é", HOSTILE, "\ufffd broken \ufffd"])
def test_tokens_join_to_the_text(text: str, shared_tokenizers: list[Any]) -> None:
    for tokenizer in [byte_tokenizer(), *shared_tokenizers]:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert "".join(token_texts(tokenizer, ids)) == tokenizer.decode(ids)


@pytest.mark.parametrize("text", ["2 + 2 = 4. ", "  two  spaces\n\n", "👩‍👩‍👧 é don't ", "\ufffd broken \ufffd"])
def test_tokens_of_a_long_text_are_those_of_its_beginnings(text: str, shared_tokenizers: list[Any]) -> None:
    for tokenizer in [byte_tokenizer(), *shared_tokenizers]:
        ids = tokenizer(text * 20, add_special_tokens=False)["input_ids"]
        beginnings = [""]
        for end in range(1, len(ids) + 1):
            beginning = tokenizer.decode(ids[:end])
            unfinished = beginning.endswith("\ufffd") and end < len(ids)
            beginnings.append(beginnings[-1] if unfinished else beginning)
        wanted = [after[len(before) :] for before, after in itertools.pairwise(beginnings)]
        assert token_texts(tokenizer, ids) == wanted


def test_the_work_of_decoding_is_linear(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, decoded = byte_tokenizer(), []
    decode = tokenizer.decode

    def counted(ids: Any) -> Any:
        decoded.append(len(ids))
        return decode(ids)

    monkeypatch.setattr(tokenizer, "decode", counted)
    ids = tokenizer("2 + 2 = 4. " * 200, add_special_tokens=False)["input_ids"]
    token_texts(tokenizer, ids)
    assert max(decoded) < 100
    assert len(decoded) < 1.1 * len(ids)


@pytest.fixture(scope="module")
def shared_tokenizers() -> list[Any]:
    """The embedded one; it knows other words than these texts hold, which is a case of its own."""
    return [load_tokenizer(ModelConfig(path="sandbox"))]


def test_every_number_of_every_policy_has_a_help_text() -> None:
    described = policies_for_page([])
    assert list(described) == list(POLICIES)
    for policy in described.values():
        assert policy["summary"]
        assert all(field["description"] for field in policy["fields"])
        assert all(field["kind"] in ("number", "switch", "choice") for field in policy["fields"])
