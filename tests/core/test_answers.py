import json

import pytest

from nlft_ray.core.answers import answers_agree, final_answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("She makes 9 * 2 = $<<9*2=18>>18 every day.\n#### 18", "18"),
        ("#### 5\nNo: #### 1,234", "1234"),
        ("#### 18 dollars for 3 days", "18"),
        ("#### nothing, although 7", "7"),
        ("in 3 steps\n#### none", None),
        ("so the total is 2,125,000.", "2125000"),
        ("3,4", "4"),
        ("A: 18", "18"),
        ("The answer is 42.", "42"),
        ("It costs $1,450.50!", "1450.50"),
        ("a loss of -$5", "-5"),
        ("a loss of $-5", "-5"),
        ("a loss of \N{MINUS SIGN}5", "-5"),
        ("+5", "5"),
        ("8-3", "3"),
        ("(8)-3", "3"),
        ("x-3", "3"),
        ("- 18", "18"),
        ("50%", "50"),
        ("half of it is .5", ".5"),
        ("well...5", "5"),
        ("it is 3/4", "3/4"),
        ("it is -3/4.", "-3/4"),
        ("\\boxed{12}", "12"),
        ("no number at all", None),
        ("", None),
    ],
)
def test_final_answer(text, answer):
    assert final_answer(text) == answer


@pytest.mark.parametrize(
    ("response", "standard", "agree"),
    [
        ("A: 18", "#### 18", True),
        ("18.0", "18", True),
        ("$1,234.50", "1234.5", True),
        (".5", "0.50", True),
        ("-5", "5", False),
        ("18.01", "18", False),
        ("3/4", "3/4", True),
        ("3/4", "4", False),
        ("4", "3/4", False),
        ("I do not know", "18", False),
        ("18", "no number", False),
        ("0." + "3" * 60, "0." + "3" * 60, True),
        ("0." + "3" * 60, "0." + "3" * 59 + "4", False),
    ],
)
def test_answers_agree(response, standard, agree):
    assert answers_agree(response, standard) is agree


def test_agrees_with_published_verdicts(shared):
    """GSM8K's example solutions of four models, each with a published verdict; answers are written "A: 18"."""
    verdicts = 0
    with (shared / "data" / "gsm8k" / "example_model_solutions.jsonl").open() as lines:
        for line in lines:
            row = json.loads(line)
            for model in ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification"):
                solution = row[model]["solution"]
                assert answers_agree(solution, row["ground_truth"]) == row[model]["is_correct"], solution
                verdicts += 1
    assert verdicts == 4 * 1319
