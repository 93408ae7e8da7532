"""The chain on the sandbox, small: what several tests look at and none wants to wait for twice."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import nlft_ray
from nlft_ray.chain import RunResult
from nlft_ray.cli.arguments import load_config
from nlft_ray.config import RunConfig
from nlft_ray.sandbox import QUICKSTART

SMALL = ["questions.limit=16", "test_questions.limit=20", "policies=[nlft]", "train.epochs=1"]
SMALL += ["pool.backend=inline"]
"""In this process: that Ray's actors write the same tables, and the same weights come out of its workers, the tests of
backends show, and `storage/test_chain.py` runs the chain on a cluster and compares."""


def small(run_dir: Path | str, *words: str) -> RunConfig:
    return load_config(RunConfig, str(QUICKSTART), [*SMALL, f"run_dir={run_dir}", *words])


@dataclass(frozen=True)
class SmallRun:
    """A finished run."""

    folder: Path
    """Tests may go on from here."""
    untouched: Path
    """As it was at the end of the run."""
    result: RunResult


def finish_small_run(folder: Path) -> SmallRun:
    result = nlft_ray.run(small(folder / "run"))
    shutil.copytree(folder / "run", folder / "untouched")
    return SmallRun(folder / "run", folder / "untouched", result)
