"""Raw record → row, format by format, without files."""

from collections import Counter
from typing import Any

import pytest

from nlft_ray.cli.arguments import load_config
from nlft_ray.config import ImportConfig, ImportOptions
from nlft_ray.errors import UserError
from nlft_ray.stages.importing.cells import BadRow, check_columns, look_up
from nlft_ray.stages.importing.formats import format_of

NLFT = {"instruction": "You do sums.", "input": "1 + 1?", "output": "3", "judgment": "It is 2.", "answer": "#### 2"}
NAN = float("nan")


def convert(record: dict[str, Any], **options: Any) -> dict[str, Any]:
    counts: Counter[str] = Counter()
    row = format_of(ImportOptions(source="x.jsonl", **options)).convert(record, counts)
    return row | {"counts": dict(counts)}


def test_nlft_holds_the_system_text_in_instruction() -> None:
    row = convert(NLFT, format="nlft")
    assert (row["instruction"], row["question"], row["standard_answer"]) == ("You do sums.", "1 + 1?", "#### 2")
    assert (row["response"], row["verdict"], row["judgment"]) == ("3", "incorrect", "It is 2.")


def test_nlft_without_input_holds_the_question_in_instruction() -> None:
    row = convert(NLFT | {"input": "", "instruction": "1 + 1?"}, format="nlft")
    assert (row["instruction"], row["question"]) == (None, "1 + 1?")


def test_cut_holds_the_task_in_instruction_and_its_material_in_input() -> None:
    assert convert(NLFT, format="cut")["question"] == "You do sums.\n1 + 1?"
    assert "instruction" not in convert(NLFT, format="cut")
    assert convert(NLFT | {"input": ""}, format="cut")["question"] == "You do sums."


@pytest.mark.parametrize("judgment", [None, "", "  "])
def test_no_judgment_means_nothing_to_criticise(judgment: str | None) -> None:
    row = convert(NLFT | {"judgment": judgment}, format="nlft")
    assert (row["verdict"], row["judgment"]) == ("correct", None)


@pytest.mark.parametrize(("score", "verdict"), [(7, "correct"), (9.5, "correct"), (6.9, "incorrect"), (0, "incorrect")])
def test_the_score_decides_and_a_correct_response_loses_its_judgment(score: float, verdict: str) -> None:
    row = convert(NLFT | {"score": score}, format="nlft")
    assert row["verdict"] == verdict
    assert bool(row["judgment"]) == (verdict == "incorrect")
    assert row["counts"] == ({"judgments_of_correct_responses_dropped": 1} if verdict == "correct" else {})


def test_the_least_correct_score_is_a_setting() -> None:
    assert convert(NLFT | {"score": 7}, format="nlft", min_correct_score=8)["verdict"] == "incorrect"


@pytest.mark.parametrize("score", ["7", True, float("nan")])
def test_a_score_must_be_a_number(score: Any) -> None:
    with pytest.raises(BadRow, match="score is not a number"):
        convert(NLFT | {"score": score}, format="nlft")


def test_a_failed_judgment_is_no_judgment() -> None:
    with pytest.raises(BadRow, match=r"judgment is \$ERROR\$"):
        convert(NLFT | {"judgment": "$ERROR$"}, format="cut")


@pytest.mark.parametrize(
    ("value", "verdict"),
    [(True, "correct"), ("False", "incorrect"), (1, "correct"), ("incorrect", "incorrect"), ("Correct ", "correct")],
)
def test_verdicts_have_several_spellings(value: Any, verdict: str) -> None:
    columns = {"question": "q", "response": "r", "verdict": "v"}
    assert convert({"q": "?", "r": "!", "v": value}, format="columns", columns=columns)["verdict"] == verdict


@pytest.mark.parametrize("value", [None, "maybe", 2, [], 0.5])
def test_other_verdicts_are_bad_rows(value: Any) -> None:
    columns = {"question": "q", "response": "r", "verdict": "v"}
    with pytest.raises(BadRow, match="verdict is none of"):
        convert({"q": "?", "r": "!", "v": value}, format="columns", columns=columns)


def test_a_standard_answer_gives_the_verdict() -> None:
    columns = {"question": "q", "response": "r", "standard_answer": "a"}
    assert convert({"q": "?", "r": "it is 4", "a": 4}, format="columns", columns=columns)["verdict"] == "correct"
    assert convert({"q": "?", "r": "it is 5", "a": 4}, format="columns", columns=columns)["verdict"] == "incorrect"
    with pytest.raises(BadRow, match="no verdict"):
        convert({"q": "?", "r": "Paris", "a": "Paris"}, format="columns", columns=columns)


@pytest.mark.parametrize(
    ("columns", "table"),
    [
        ({"question": "q"}, "questions"),
        ({"question": "q", "response": "r", "verdict": "v"}, "responses"),
        ({"question": "q", "response": "r", "judgment": "j"}, "examples"),
    ],
)
def test_the_table_follows_from_the_columns(columns: dict[str, str], table: str) -> None:
    assert format_of(ImportOptions(source="x", format="columns", columns=columns)).table == table


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"question": "q", "answer": "a"}, "answer are not columns of ours; they are id, instruction"),
        ({"question": "q", "response_ids": "a"}, "response_ids are not columns of ours"),
        ({"response": "q", "verdict": "v"}, "`question` must be mapped"),
        ({"question": "q", "judgment": "j"}, "`response` is not mapped"),
        ({"question": "q", "response": "r"}, "nothing says which responses are correct"),
    ],
)
def test_columns_that_make_no_table(columns: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        format_of(ImportOptions(source="x", format="columns", columns=columns))


def test_a_dot_reaches_into_an_object_unless_a_column_has_that_name() -> None:
    assert look_up({"a": {"b": {"c": 1}}}, "a.b.c") == 1
    assert look_up({"a": {"b": 1}, "a.b": 2}, "a.b") == 2
    assert look_up({"a": 1}, "a.b") is None
    assert look_up({"a": {"b": [{"c": 1}, {"c": 2}]}}, "a.b[-1].c") == 2
    assert look_up({"a": [1, 2]}, "a[2]") is None


@pytest.mark.parametrize(
    ("value", "found"), [(["x"], "x"), ([["x"]], "x"), (float("nan"), None), ([float("nan")], None)]
)
def test_a_list_of_one_is_its_value_and_nan_is_missing(value: Any, found: Any) -> None:
    assert look_up({"a": value}, "a") == found


def test_a_template_joins_columns() -> None:
    columns = {"question": "{{ Body }} {{ row['The question'] }}", "standard_answer": "{{ meta.answers[0] }}"}
    record = {"Body": "Two pens.", "The question": "How many?", "meta": {"answers": [2, 3]}}
    row = convert(record, format="columns", columns=columns)
    assert (row["question"], row["standard_answer"]) == ("Two pens. How many?", "2")
    assert convert(record | {"Body": float("nan")}, format="columns", columns=columns)["question"] == " How many?"


def test_templates_that_fail_name_their_column() -> None:
    with pytest.raises(UserError, match=r"the template of question is wrong: .* in '{{ a'"):
        convert({}, format="columns", columns={"question": "{{ a"})
    with pytest.raises(BadRow, match="the template of question fails: 'Body' is undefined"):
        convert({}, format="columns", columns={"question": "{{ Body }}"})
    with pytest.raises(BadRow, match=r"the template of question fails: .*unsafe"):
        convert({"a": "b"}, format="columns", columns={"question": "{{ a.__class__.__mro__ }}"})
    form = format_of(ImportOptions(source="x", format="columns", columns={"question": "{{ Bdy }}", "id": "ids[0]"}))
    with pytest.raises(UserError, match=r"Bdy \(did you mean Body\?\)"):
        check_columns(form.needed, [{"Body": "x", "ids": ["7", "8"]}])


def test_a_missing_column_is_named_with_its_neighbours() -> None:
    with pytest.raises(UserError) as caught:
        check_columns(["qestion", "answer"], [{"question": 1, "meta": {"answer": 2}}, {"text": 3}])
    assert str(caught.value) == (
        "source: the first rows have no column\n  qestion (did you mean question?)\n"
        "  answer (did you mean meta.answer?)\nThey have: question, meta, meta.answer, text."
    )


def test_a_template_passes_the_command_line() -> None:
    words = ["source=x.csv", "output=out", "format=columns", "columns.question={{ Body }} {{ Question }}"]
    assert load_config(ImportConfig, None, words).columns == {"question": "{{ Body }} {{ Question }}"}
