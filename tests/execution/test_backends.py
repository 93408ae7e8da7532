"""Work in this process and work on Ray are the same work: equal tables, equal counts."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

import nlft_ray
from nlft_ray.config import EvaluateConfig, JudgeConfig, PoolConfig, SampleConfig, ScoreConfig
from nlft_ray.tables.manifest import StageResult
from tests.rows import QUESTION, example, read_rejects, read_table, write_table

QUESTIONS = [{"id": str(number), **QUESTION, "question": f"What is {number} + 2?"} for number in range(24)]
EXAMPLES = [example(str(number), correct=number % 3 == 0) for number in range(24)]
UNJUDGED = [row | {"judgment": None} for row in EXAMPLES]
UNUSABLE = EXAMPLES[5] | {"id": "unusable", "response_ids": [1_000_000]}

STAGES: dict[str, tuple[str, list[dict[str, Any]], Callable[[dict[str, Any]], StageResult]]] = {
    "sample": ("questions", QUESTIONS, lambda settings: nlft_ray.sample(SampleConfig.model_validate(settings))),
    "judge": ("examples", UNJUDGED, lambda settings: nlft_ray.judge(JudgeConfig.model_validate(settings))),
    "score": ("examples", [*EXAMPLES, UNUSABLE], lambda settings: nlft_ray.score(ScoreConfig.model_validate(settings))),
    "evaluate": ("questions", QUESTIONS, lambda settings: nlft_ray.evaluate(EvaluateConfig.model_validate(settings))),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "sample": {"max_new_tokens": 8, "responses_per_question": 2, "seed": 3},
    "judge": {"max_new_tokens": 8, "temperature": 1.0, "seed": 3},
    "score": {},
    "evaluate": {"max_new_tokens": 8},
}


@pytest.mark.usefixtures("ray_local")
@pytest.mark.parametrize("stage", STAGES)
def test_both_give_the_same_table(tmp_path: Path, random_llama: str, stage: str) -> None:
    table, rows, run = STAGES[stage]
    source = write_table(tmp_path / table, table, rows)

    def outcome(backend: str) -> tuple[Any, ...]:
        settings = {
            "input": source,
            "output": str(tmp_path / backend),
            "model": {"path": random_llama},
            "pool": {"backend": backend, "rows_per_shard": 5},
            "max_reject_fraction": 1,
        }
        manifest = run(settings | OPTIONS[stage]).manifest
        rejects = sorted((reject["id"], reject["reason"]) for reject in read_rejects(tmp_path / backend))
        identity = manifest.identity.fingerprint()
        return read_table(tmp_path / backend), rejects, manifest.counts, manifest.tokens, identity

    assert outcome("inline") == outcome("ray")


@pytest.mark.usefixtures("ray_local")
def test_what_one_began_the_other_finishes(tmp_path: Path, random_llama: str) -> None:
    settings = {
        "input": write_table(tmp_path / "examples", "examples", EXAMPLES),
        "output": str(tmp_path / "scored"),
        "model": {"path": random_llama},
    }
    run = STAGES["score"][2]
    whole = run(settings | {"pool": {"backend": "inline", "rows_per_shard": 5}})
    files = sorted((tmp_path / "scored" / "data").iterdir())
    times = [file.stat().st_mtime_ns for file in files]
    files[2].unlink()
    again = run(settings | {"pool": {"rows_per_shard": 5}})
    assert not again.reused
    assert again.manifest.identity == whole.manifest.identity
    assert [file.stat().st_mtime_ns == time for file, time in zip(files, times, strict=True)].count(False) == 1


@pytest.mark.system
def test_inline_work_never_imports_ray(tmp_path: Path, random_llama: str) -> None:
    source = write_table(tmp_path / "examples", "examples", EXAMPLES)
    words = ["score", f"input={source}", f"output={tmp_path / 'scored'}", f"model.path={random_llama}"]
    code = (
        "import sys; from nlft_ray.cli.main import main\n"
        f"status = main({[*words, 'pool.backend=inline']!r})\n"
        "assert not status, status\n"
        "assert 'torch' in sys.modules and 'ray' not in sys.modules, 'Ray was imported'"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert len(read_table(tmp_path / "scored")) == len(EXAMPLES)


@pytest.mark.parametrize("setting", [{"min_workers": 2}, {"label_selector": {"pool": "score"}}, {"tensor_parallel": 2}])
def test_what_one_process_cannot_give_is_refused(setting: dict[str, Any]) -> None:
    with pytest.raises(
        ValidationError, match=rf"inline is one worker in this process: leave out {next(iter(setting))}"
    ):
        PoolConfig.model_validate({"backend": "inline", **setting})
