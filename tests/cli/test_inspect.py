"""`inspect` counts what the policies make of a scored folder, and shows one example of it."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from nlft_ray.analysis.figures import BINS, figures_of
from nlft_ray.cli.inspect import inspect
from nlft_ray.cli.main import main
from nlft_ray.cli.tokens import printable
from nlft_ray.core.policies import POLICIES
from nlft_ray.errors import UserError
from nlft_ray.models.loading import load_tokenizer
from nlft_ray.storage.folder import Folder
from nlft_ray.tables.manifest import finish, read_manifest
from nlft_ray.tables.scored import facts_of
from nlft_ray.tables.shards import REJECTED, rejects_table
from tests.rows import example, read_table, write_table

RESPONSE_POLICIES = [kind() for kind in POLICIES.values() if kind.target == "response"]


def scored_row(number: int, tokens: int, ids: list[int] | None = None) -> dict[str, Any]:
    rng = np.random.default_rng(number)
    wrong = number % 3 == 0
    logp = [-rng.exponential(0.5, tokens).astype(np.float32) for _ in range(3)]
    return {
        "id": str(number),
        "verdict": "incorrect" if wrong else "correct",
        "input_ids": [5, 6, *(ids or range(tokens))],
        "response_start": 2,
        "logp_base": logp[0],
        "logp_judge": logp[1] if wrong else None,
        "logp_standard": logp[2] if number % 5 else None,
        "top_standard": list(range(tokens)) if number % 5 else None,
        "top_logp_standard": logp[2] if number % 5 else None,
        "hidden_norm": np.ones(tokens, np.float32),
        "hidden_cos": rng.uniform(0, 1, tokens * 8).astype(np.float32),
    }


def test_figures_are_the_sums_over_all_rows_and_files(tmp_path: Path) -> None:
    rows = [scored_row(number, 3 + number % 7) for number in range(50)]
    folder = Folder(write_table(tmp_path / "scored", "scored", rows, rows_per_file=7))
    figures = figures_of(folder, RESPONSE_POLICIES)
    assert figures.verdicts == {"correct": 33, "incorrect": 17}
    assert figures.response_tokens == sum(3 + number % 7 for number in range(50))
    assert figures.without_standard_answer == 10
    for policy in RESPONSE_POLICIES:
        share = figures.by_policy[policy.name]
        weights = [policy.weigh(facts_of(row)) for row in rows]
        assert share.scoring + share.losing == sum(one.saliency.sum() for one in weights)
        assert share.losing == sum((one.saliency & (one.sign < 0)).sum() for one in weights)
        assert share.histogram.sum() == figures.response_tokens
        assert share.histogram[0] == sum((one.sign < 0).sum() for one in weights)
        assert share.histogram[1] == sum((one.sign == 0).sum() for one in weights)
        above = sum(((one.sign > 0) & (one.weight > 2)).sum() for one in weights)
        assert share.histogram[BINS.index("above 2")] == above


@pytest.fixture
def sandbox_folder(tmp_path: Path) -> Path:
    """A scored folder, with rejects, beside its examples; the ids are the sandbox model's."""
    from nlft_ray.config import ModelConfig

    model = ModelConfig(path="sandbox")
    ids = load_tokenizer(model)("Anna has 62 + 13 = 75 pens now. #### 75", add_special_tokens=False)["input_ids"]
    write_table(
        tmp_path / "examples", "examples", [example(str(number), correct=number % 3 != 0) for number in range(9)]
    )
    rows = [scored_row(number, len(ids), ids) for number in range(8)]
    folder = Folder(write_table(tmp_path / "scored", "scored", rows))
    (folder / REJECTED).write_table("part-000000.parquet", rejects_table("score", [({"id": "8"}, "too long: 9")]))
    manifest = read_manifest(folder, table="scored")
    identity = manifest.identity.model_copy(update={"config": {"model": model.model_dump()}})
    changes = {
        "identity": identity,
        "rows_in": 9,
        "rows_rejected": 1,
        "reject_reasons": {"too long": 1},
        "tokens": 1234,
    }
    finish(folder, manifest.model_copy(update=changes))
    return tmp_path / "scored"


def shown(folder: Path, **options: Any) -> str:
    console = Console(file=io.StringIO(), width=120)
    inspect(str(folder), console=console, **options)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_a_folder_in_figures(sandbox_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["inspect", str(sandbox_folder)])
    text = capsys.readouterr().out
    for words in (["rows", "8", "of 9 read"], ["too long", "1"], ["tokens through the model", "1,234"]):
        assert any(all(word in line for word in words) for line in text.splitlines()), words
    assert all(policy.name in text for policy in RESPONSE_POLICIES)
    assert "█" in text


def test_one_example_is_shown_token_by_token(sandbox_folder: Path) -> None:
    wrong = shown(sandbox_folder, row_id="0", policy="cut")
    assert "An incorrect response, as policy cut sees it" in wrong
    assert "It adds one too many." in wrong
    row = read_table(sandbox_folder)["0"]
    weights = POLICIES["cut"]().weigh(facts_of(row))
    lines = [line.split() for line in wrong.partition("Every token")[2].splitlines()[3:] if line.strip()]
    tokens = [line for line in lines if "losing" in line or "plain" in line]
    assert len(tokens) == len(row["logp_base"])
    for t, line in enumerate(tokens):
        p_base, p_judge = np.exp(row["logp_base"][t]), np.exp(row["logp_judge"][t])
        after = line[line.index("losing" if weights.sign[t] < 0 else "plain") + 1 :]
        assert after[:3] == [f"{p_base:.3f}", f"{p_judge:.3f}", f"{p_judge / p_base:,.2f}"], "no standard answer"
        assert after[3] == f"{weights.sign[t] * weights.weight[t]:.3f}"
        cosines = [f"{row['hidden_cos'][8 * other]:.2f}" for other in (t - 1, t) if 0 <= other < len(tokens) - 1]
        assert after[4 : 4 + len(cosines)] == cosines
    right = shown(sandbox_folder, row_id="1", examples=str(sandbox_folder.parent / "examples"))
    assert "A correct response, as policy nlft sees it" in right
    assert "Anna has 62 + 13 = 75 pens now." in right


def test_control_characters_do_not_reach_the_terminal() -> None:
    assert printable("a\x1b[31mb\r\x07\u202ec\nd\x9b") == "a␛[31mb␍␇\\u202ec\nd\\u009b"
    assert printable("👩‍👧 é") == "👩‍👧 é"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"row_id": "8"}, "rejected: too long: 9"),
        ({"row_id": "99"}, "no such id"),
        ({"row_id": "1", "examples": "absent"}, "absent does not exist"),
        ({"policy": "sft"}, "weighs no responses. Choose one of chord, cut"),
    ],
)
def test_mistakes_are_said(sandbox_folder: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        shown(sandbox_folder, **options)
