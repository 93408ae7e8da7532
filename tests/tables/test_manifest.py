"""A folder belongs to one identity; a second start continues, or says what differs."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from nlft_ray.cli.summary import show
from nlft_ray.config import JudgeConfig, ScoreConfig, TrainConfig
from nlft_ray.config.shared import NotIdentity
from nlft_ray.errors import UserError
from nlft_ray.stages import STAGES
from nlft_ray.storage.folder import Folder
from nlft_ray.tables.manifest import (
    Identity,
    Manifest,
    StageResult,
    begin,
    check_rejects,
    finish,
    identity_of,
    read_manifest,
    settle_model,
)
from tests.rows import QUESTION, write_table


def identity(**changes: object) -> Identity:
    config = ScoreConfig.model_validate({"input": "i", "output": "o", "model": {"path": "m"}, **changes})
    return identity_of(config, "score", table="scored", model="1234")


def manifest(rejected: int = 0) -> Manifest:
    return Manifest(
        identity=identity(),
        rows_in=100,
        rows_out=100 - rejected,
        rows_rejected=rejected,
        reject_reasons={"too long": rejected},
        seconds=1.0,
    )


def test_begin_is_new_then_continues_then_is_complete(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path / "out"))
    assert begin(folder, identity(), overwrite=False) is None
    assert begin(folder, identity(), overwrite=False) is None
    finish(folder, manifest())
    assert begin(folder, identity(), overwrite=False) == manifest()


def test_a_manifest_with_earlier_counters_is_read_and_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Folder(str(tmp_path / "scored"))
    begin(folder, identity(), overwrite=False)
    earlier = {"forward_passes": 14.0, "padded_passes": 14.0, "response_tokens": 227.0}
    finish(folder, manifest().model_copy(update={"counts": earlier, "tokens": 1771}))
    complete = begin(folder, identity(), overwrite=False)
    assert complete is not None
    show(StageResult(output=str(folder), manifest=complete, reused=True))
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("1,771", "forward passes", "14", "227"))


def not_asked() -> str:
    pytest.fail("nobody may ask what auto becomes")


def settled(folder: Folder, identity: Identity, *, overwrite: bool = False, **automatic: str) -> dict[str, str]:
    """The identity's dtype and attention; those that are not named may not be asked for."""
    choices = {
        f"model.{name}": partial(automatic.__getitem__, name) if name in automatic else not_asked for name in CHOSEN
    }
    model = settle_model(folder, identity, overwrite=overwrite, automatic=choices).config["model"]
    return {name: model[name] for name in CHOSEN}


CHOSEN = ("dtype", "attention")


def test_a_new_output_takes_what_devices_and_family_say(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path / "out"))
    for automatic in ({"dtype": "bfloat16", "attention": "sdpa"}, {"dtype": "float32", "attention": "eager"}):
        assert settled(folder, identity(), **automatic) == automatic  # type: ignore[arg-type]
    named = identity(model={"path": "m", "dtype": "bfloat16"})
    assert settled(folder, named, attention="eager") == {"dtype": "bfloat16", "attention": "eager"}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "auto"])
def test_an_output_goes_on_as_it_was_begun(tmp_path: Path, dtype: str, attention: str) -> None:
    """Where nobody knew its type then, too: a plan of before says auto."""
    begun = {"dtype": dtype, "attention": attention}
    folder = Folder(str(tmp_path / "out"))
    begin(folder, identity(model={"path": "m"} | begun), overwrite=False)
    assert settled(folder, identity(), overwrite=True) == begun
    for name, another in (
        ("dtype", "float32" if dtype == "bfloat16" else "bfloat16"),
        ("attention", "flash_attention_2"),
    ):
        other = identity(model={"path": "m", name: another})
        automatic = {"model.dtype": lambda: "float32", "model.attention": lambda: "sdpa"}
        changed = settle_model(folder, other, overwrite=False, automatic=automatic)
        with pytest.raises(UserError, match=rf"model\.{name}") as caught:
            begin(folder, changed, overwrite=False)
        assert str(caught.value).count("model.") == 1


def test_auto_is_no_difference_of_its_own(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path / "out"))
    begin(folder, identity(model={"path": "m", "dtype": "bfloat16", "attention": "sdpa"}), overwrite=False)
    changed = identity(hidden_window=4)
    refused = settle_model(folder, changed, overwrite=False, automatic={f"model.{name}": not_asked for name in CHOSEN})
    with pytest.raises(UserError, match="hidden_window") as caught:
        begin(folder, refused, overwrite=False)
    assert "model." not in str(caught.value)
    now = {"dtype": "float32", "attention": "eager"}
    assert settled(folder, changed, overwrite=True, **now) == now, "made anew, on other devices"


def test_a_folder_that_goes_with_its_job_is_refused(tmp_path: Path) -> None:
    copy = tmp_path / "runtime_resources" / "working_dir_files" / "_ray_pkg_1"
    with pytest.raises(UserError, match="runs/scored lies in the copy of your working directory"):
        begin(Folder(str(copy / "runs" / "scored")), identity(), overwrite=False)
    assert not copy.exists()


def test_another_identity_is_refused_by_the_name_of_the_field(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path / "out"))
    begin(folder, identity(), overwrite=False)
    finish(folder, manifest())
    with pytest.raises(UserError, match=r"config\.hidden_window: 8 → 4"):
        begin(folder, identity(hidden_window=4), overwrite=False)
    assert begin(folder, identity(hidden_window=4), overwrite=True) is None
    assert not folder.has("manifest.json")


def test_where_and_how_fast_are_not_identity() -> None:
    moved = identity(input="elsewhere", pool={"max_workers": 7}, max_reject_fraction=0.5, ray_address="auto")
    assert moved.fingerprint() == identity().fingerprint()


def test_a_folder_of_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("dear")
    with pytest.raises(UserError, match="did not write"):
        begin(Folder(str(tmp_path)), identity(), overwrite=True)


def test_inputs_must_be_complete_and_of_the_right_kind(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        read_manifest(Folder(str(tmp_path / "absent")), table="examples")
    begin(Folder(str(tmp_path / "begun")), identity(), overwrite=False)
    with pytest.raises(UserError, match="not complete"):
        read_manifest(Folder(str(tmp_path / "begun")), table="examples")
    questions = write_table(tmp_path / "q", "questions", [{"id": "1", **QUESTION}])
    with pytest.raises(UserError, match="holds questions"):
        read_manifest(Folder(questions), table="examples")


def test_too_many_rejects_fail_with_the_reasons(tmp_path: Path) -> None:
    config = ScoreConfig.model_validate({"input": "i", "output": "o", "model": {"path": "m"}})
    check_rejects(config, "score", manifest(rejected=5), Folder(str(tmp_path)))
    with pytest.raises(UserError, match="6 × too long"):
        check_rejects(config, "score", manifest(rejected=6), Folder(str(tmp_path)))


@pytest.mark.parametrize(
    ("setting", "value", "same"),
    [
        ("num_workers", 2, True),
        ("prompts", {"base": "{{ question }}!"}, True),
        ("epochs", 6, False),
        ("seed", 1, False),
    ],
)
def test_where_and_how_fast_are_no_part_of_an_identity(setting: str, value: object, same: bool) -> None:
    settings = {"input": "scored", "output": "trained", "model": {"path": "m"}}
    one, other = (TrainConfig.model_validate(settings | changed) for changed in ({}, {setting: value}))
    assert (identity_of(one, "train") == identity_of(other, "train")) is same


def test_settings_of_a_setting_are_marked_too() -> None:
    server = {"base_url": "http://127.0.0.1/v1", "model": "judge"}
    settings = {"input": "responses", "output": "examples", "model": {"path": "m"}}
    one, faster, another = (
        identity_of(JudgeConfig.model_validate(settings | {"server": server | changed}), "judge")
        for changed in ({}, {"concurrency": 3}, {"model": "other"})
    )
    assert one == faster
    assert one != another


@pytest.mark.parametrize("stage", STAGES)
def test_no_identity_holds_where_a_stage_reads_and_writes(stage: str) -> None:
    config: Any = STAGES[stage].load_config()
    fields = config.model_fields
    where = fields.keys() & {"input", "output", "overwrite", "max_reject_fraction", "pool", "ray_address"}
    assert "output" in where
    assert [name for name in where if not any(isinstance(mark, NotIdentity) for mark in fields[name].metadata)] == []
