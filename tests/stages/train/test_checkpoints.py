"""Checkpoints: what they bring back, under which ZeRO stage and number of workers, and what becomes of half ones.

The ordinary run resumes each ZeRO stage under another. Every stage and number of workers under every other:

    pytest -m exhaustive tests/stages/train/test_checkpoints.py
"""

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from nlft_ray.config import TrainConfig
from tests.stages.train import support, workers

pytestmark = pytest.mark.usefixtures("process_group", "one_thread")

PLACES = list(itertools.product((0, 1, 2, 3), (1, 2)))
"""ZeRO stage and number of workers."""
LORA = {"dropout": 0.0}
SOME = [((0, 1), (3, 2), LORA), ((3, 2), (2, 1), None), ((2, 2), (0, 1), None), ((1, 1), (0, 2), LORA)]
ALL = [(before, after, lora) for before, after in itertools.permutations(PLACES, 2) for lora in (None, LORA)]


class Trainer:
    """Trains in this process or in two others."""

    def __init__(self, model: str, scored: str, two_workers: workers.Group):
        self._model, self._scored, self._two_workers = model, scored, two_workers

    def config(self, output: Path, stage: int = 0, **changes: Any) -> TrainConfig:
        changes = {"batch_size": 3, "checkpoint_every_steps": 2, "zero_stage": stage} | changes
        return support.train_config(self._model, self._scored, output, **changes)

    def run(self, config: TrainConfig, number: int, checkpoints: Path, stop_after: int | None = None) -> None:
        if number == 2:
            self._two_workers.do(workers.train_in, config, checkpoints, stop_after)
        else:
            workers.train_in(config, checkpoints, stop_after)


@pytest.fixture
def trainer(model: str, scored: str, two_workers: workers.Group) -> Trainer:
    return Trainer(model, scored, two_workers)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> dict[Any, Path]:
    """Folders of trainings that were broken off after four steps, by where and how they ran."""
    return {"folder": tmp_path_factory.mktemp("stopped")}


@pytest.mark.parametrize(
    ("before", "after", "lora"),
    [pytest.param(*case, marks=() if case in SOME else pytest.mark.exhaustive) for case in ALL],
    ids=str,
)
def test_the_loss_continues_under_another_stage_and_number_of_workers(
    before: tuple[int, int], after: tuple[int, int], lora: Any, trainer: Trainer, stopped: dict[Any, Path]
) -> None:
    key = f"{before}-{bool(lora)}"
    folder = stopped["folder"] / key
    if key not in stopped:
        trainer.run(trainer.config(folder, before[0], lora=lora), before[1], folder / "checkpoints", stop_after=4)
        whole = trainer.config(folder / "whole", before[0], lora=lora)
        trainer.run(whole, before[1], folder / "other-checkpoints")
        stopped[key] = folder / "whole"
    output = folder / str(after)
    shutil.copytree(folder / "checkpoints", output / "checkpoints")
    trainer.run(trainer.config(output, after[0], lora=lora), after[1], output / "checkpoints")
    wanted, found = support.record(stopped[key]), support.record(output)
    assert [line["step"] for line in found] == list(range(1, 9))
    assert found[:4] == support.record(folder)
    for one, other in zip(wanted[4:], found[4:], strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-5)
        assert other["gradient_norm"] == pytest.approx(one["gradient_norm"], rel=1e-4)


@pytest.mark.parametrize(
    ("stage", "number"),
    [pytest.param(*place, marks=() if place in ((0, 1), (1, 2)) else pytest.mark.exhaustive) for place in PLACES],
)
def test_bfloat16_goes_on_from_the_float32_values(trainer: Trainer, tmp_path: Path, stage: int, number: int) -> None:
    """A training that went on from the rounded weights would lose what steps have added below their precision."""
    folder = tmp_path
    changes = {"model": {"path": trainer.config(folder).model.path, "dtype": "bfloat16"}, "learning_rate": 1e-4}
    trainer.run(trainer.config(folder / "whole", stage, **changes), number, folder / "whole-checkpoints")
    config = trainer.config(folder / "stopped", stage, **changes)
    trainer.run(config, number, folder / "checkpoints", stop_after=4)
    trainer.run(config, number, folder / "checkpoints")
    one, other = (support.record(folder / name) for name in ("whole", "stopped"))
    assert [line["loss"] for line in one] == [line["loss"] for line in other]
    part = next((folder / "checkpoints").glob("step-*6-*/part-*.safetensors"))
    with safe_open(part, framework="pt") as tensors:
        values = [tensors.get_tensor(key) for key in tensors.keys() if key.startswith("value/")]  # noqa: SIM118
    assert {value.dtype for value in values} == {torch.float32}
    assert any(not torch.equal(value, value.bfloat16().float()) for value in values)


def test_a_checkpoint_holds_states_steps_seed_and_record(trainer: Trainer, tmp_path: Path) -> None:
    config = trainer.config(tmp_path / "out", 2, seed=5, lora={})
    trainer.run(config, 2, tmp_path / "checkpoints", stop_after=4)
    (folder,) = (tmp_path / "checkpoints").iterdir()
    complete = json.loads((folder / "checkpoint.json").read_text())
    assert (complete["steps_done"], complete["seed"], complete["optimizer_steps"]) == (4, 5, 4)
    assert [json.loads(line) for line in (folder / "metrics.jsonl").open()] == support.record(tmp_path / "out")
    names = []
    for part in complete["parts"]:
        with safe_open(folder / part, framework="pt") as tensors:
            names.append(list(tensors.keys()))
    assert all(names), "every worker writes a part"
    every = sorted(name.partition("/")[2] for part in names for name in part)
    assert set(every) == set(every[::3])
    assert len(every) == 3 * len(set(every)), "value and two moments, each once"
    assert all(".lora_" in name for name in every), "nothing that is not trained"


def test_half_checkpoints_are_cleared_away_and_damaged_ones_said_in_a_line(trainer: Trainer, tmp_path: Path) -> None:
    config, checkpoints = trainer.config(tmp_path / "out"), tmp_path / "checkpoints"
    trainer.run(config, 1, checkpoints, stop_after=4)
    shutil.copytree(checkpoints, tmp_path / "damaged")
    (whole,) = checkpoints.iterdir()
    half = checkpoints / "step-00000006-00000000"
    shutil.copytree(whole, half)
    (half / "checkpoint.json").unlink()
    resumed = support.StoppingCheckpoints(checkpoints)
    support.train_alone(config, resumed)
    assert resumed.saved == [6]
    assert not half.exists()

    (part,) = (tmp_path / "damaged").glob("*/part-*")
    part.write_bytes(part.read_bytes()[:-100])
    with pytest.raises(RuntimeError, match=r"step-00000004.* cannot be read: .*"):
        support.train_alone(config, support.StoppingCheckpoints(tmp_path / "damaged"))


def test_what_cannot_be_read_or_written_fails_on_all_workers(trainer: Trainer, tmp_path: Path) -> None:
    def failure(checkpoints: Path, output: Path = tmp_path / "out") -> str:
        with pytest.raises(AssertionError) as caught:  # what the group of workers makes of it
            trainer.run(trainer.config(output, 2), 2, checkpoints)
        return str(caught.value)

    (tmp_path / "file").write_text("a file, where a folder should be")
    assert failure(tmp_path / "file").count("cannot be read: ") >= 2
    assert failure(Path("/proc/none")).count("cannot be written: ") >= 2
    for place, problem in (
        ("metrics.jsonl/x", "the record of the steps"),
        ("weights/model.safetensors/x", "the weights"),
    ):
        taken = tmp_path / problem
        (taken / place).mkdir(parents=True)
        assert failure(tmp_path / f"checkpoints of {problem}", taken).count(f"{problem} cannot be written: ") >= 2


def test_checkpoints_in_a_store(trainer: Trainer, tmp_path: Path) -> None:
    """Reached through fsspec, a folder behaves as a store: files travel whole, through pyarrow's filesystem."""
    whole = trainer.config(tmp_path / "whole")
    trainer.run(whole, 1, tmp_path / "others")
    config = trainer.config(tmp_path / "unused").model_copy(update={"output": f"fsspec+file://{tmp_path}/stopped"})
    checkpoints = f"{config.output}/checkpoints"
    with pytest.raises(support.Stopped):
        support.train_alone(config, support.StoppingCheckpoints(checkpoints, stop_after=4))
    support.train_alone(config, support.StoppingCheckpoints(checkpoints))
    assert [line["loss"] for line in support.record(config.output)] == [
        line["loss"] for line in support.record(whole.output)
    ]
    written, wanted = (tmp_path / name / "weights" / "model.safetensors" for name in ("stopped", "whole"))
    assert written.read_bytes() == wanted.read_bytes()
