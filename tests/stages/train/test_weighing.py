"""What a policy makes of the scored table, and that it is made once."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nlft_ray.core.policies import POLICIES
from nlft_ray.errors import UserError
from nlft_ray.stages.train.examples import Example
from nlft_ray.stages.train.weighing import Weighing, survey
from nlft_ray.storage.folder import Folder
from nlft_ray.tables.manifest import identity_of, read_manifest
from nlft_ray.tables.scored import facts_of
from tests.stages.train import support


def weighed(folder: str, policy: str, max_length: int = 64) -> tuple[Weighing, list[Example]]:
    weighing = Weighing(POLICIES[policy](), max_length)
    return weighing, list(weighing.examples(Folder(folder)))


def test_an_example_has_the_weights_that_the_policy_gives(scored: str) -> None:
    weighing, examples = weighed(scored, "nlft")
    assert len(examples) == 11
    for row, example in zip(support.scored_rows(), examples, strict=True):
        weights = POLICIES["nlft"]().weigh(facts_of(row))
        assert example.input_ids.tolist() == row["input_ids"]
        np.testing.assert_allclose(example.likelihood, weights.likelihood, rtol=1e-6)
        np.testing.assert_allclose(example.unlikelihood, weights.unlikelihood, rtol=1e-6)
        np.testing.assert_allclose(example.anchor, weights.anchor)
    counts = weighing.counts
    assert (counts["correct"], counts["incorrect"]) == (6, 5)
    assert counts["trained_tokens"] == counts["weighted_tokens"] + counts["silenced_tokens"]
    assert counts["losing_tokens"] == counts["lowered_tokens"] > 0


def test_rows_without_weight_are_counted_apart(scored: str) -> None:
    weighing, examples = weighed(scored, "rft")
    assert len(examples) == weighing.counts["examples"] == 6
    assert weighing.counts["rows_without_weight"] == 5
    assert weighing.counts["incorrect"] == 0


def test_sft_trains_the_standard_answer_after_the_base_prompt(scored: str) -> None:
    for row, example in zip(support.scored_rows(), weighed(scored, "sft")[1], strict=True):
        assert example.input_ids.tolist() == row["input_ids"][: row["response_start"]] + row["standard_ids"]
        assert example.likelihood.tolist() == [1.0] * len(row["standard_ids"])


def test_sft_rejects_rows_without_standard_answer_and_too_long_ones(tmp_path: Path, model: str) -> None:
    rows: list[dict[str, Any]] = [
        row | {"logp_standard": None, "standard_ids": None} if number == 2 else row
        for number, row in enumerate(support.scored_rows())
    ]
    rows[3]["standard_ids"] = [6] * 70
    weighing, examples = weighed(support.save_scored(tmp_path, model, rows), "sft")
    assert len(examples) == 9
    assert [row["id"] for row, _ in weighing.rejects] == ["row-002", "row-003"]
    assert len({reason for _, reason in weighing.rejects}) == 2


def test_nothing_to_train_on_is_the_users_to_mend(tmp_path: Path, model: str) -> None:
    rows = [row for row in support.scored_rows() if row["verdict"] == "incorrect"]
    with pytest.raises(UserError, match=r"'rft' gives no weight to any row.*5 rows"):
        weighed(support.save_scored(tmp_path, model, rows), "rft")


def test_a_damaged_row_is_named(tmp_path: Path, model: str) -> None:
    rows = support.scored_rows()
    rows[4]["logp_base"] = [*rows[4]["logp_base"][:-1], float("nan")]
    with pytest.raises(UserError, match="row-004"):
        weighed(support.save_scored(tmp_path / "nan", model, rows), "nlft")
    rows = support.scored_rows()
    rows[5]["input_ids"].append(6)
    with pytest.raises(UserError, match="row-005"):
        weighed(support.save_scored(tmp_path / "long", model, rows), "nlft")


def test_the_order_does_not_depend_on_how_the_table_is_cut(tmp_path: Path, model: str, scored: str) -> None:
    shuffled = support.save_scored(tmp_path / "table", model, support.scored_rows()[::-1], rows_per_file=3)
    ids = [
        [example.id for example in support.weigh(support.train_config(model, table, tmp_path / name))]
        for name, table in (("one", scored), ("other", shuffled))
    ]
    assert ids[0] == ids[1] == sorted(ids[0])


def test_a_table_with_other_rows_than_it_says_is_refused(tmp_path: Path, model: str) -> None:
    table = support.save_scored(tmp_path / "table", model)
    next((tmp_path / "table" / "data").glob("*.parquet")).unlink()
    with pytest.raises(UserError, match=r"manifest counts 11 rows, its files hold 7: they were changed"):
        support.weigh(support.train_config(model, table, tmp_path / "out"))


def test_a_table_is_weighed_once(model: str, scored: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = support.train_config(model, scored, tmp_path / "out", held_out=scored)
    identity, folder = identity_of(config, "train"), tmp_path / "out" / "examples"
    first = survey(config, identity, 11)
    assert sorted(path.name for path in folder.iterdir()) == ["held_out.arrow", "survey.json", "trained.arrow"]
    monkeypatch.setattr(Weighing, "examples", lambda *_: pytest.fail("weighed again"))
    assert survey(config, identity, 11) == first


def cut(folder: Path) -> None:
    file = folder / "trained.arrow"
    file.write_bytes(file.read_bytes()[:-100])


def change_a_weight(folder: Path) -> None:
    content = bytearray((folder / "trained.arrow").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "trained.arrow").write_bytes(content)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "killed before anything was written": shutil.rmtree,
    "killed before the record": lambda folder: (folder / "survey.json").unlink(),
    "half a record": lambda folder: (folder / "survey.json").write_text('{"manifest": {'),
    "a file is gone": lambda folder: (folder / "held_out.arrow").unlink(),
    "a file is cut": cut,
    "a bit of a file is another": change_a_weight,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_not_whole_is_weighed_anew(damage: str, model: str, scored: str, tmp_path: Path) -> None:
    config, folder = support.train_config(model, scored, tmp_path, held_out=scored), tmp_path / "examples"
    identity = identity_of(config, "train")
    manifest = survey(config, identity, 11)
    whole = {path.name: path.read_bytes() for path in folder.iterdir()}
    DAMAGES[damage](folder)
    assert survey(config, identity, 11) == manifest
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == whole


def test_weights_of_another_policy_are_not_taken(model: str, scored: str, tmp_path: Path) -> None:
    rows = read_manifest(Folder(scored), table="scored").rows_out
    examples = []
    for policy in ("nlft", "rft"):
        config = support.train_config(model, scored, tmp_path, policy=policy)
        examples.append(survey(config, identity_of(config, "train"), rows).rows_out)
    assert examples == [11, 6]
