"""The ready-made runs of pipelines/configs: strict, with the memory that their comments promise, and runnable.

One of them runs in the ordinary tests. All:

    pytest -m exhaustive tests/test_run_configs.py
"""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

import nlft_ray
from nlft_ray.cli.arguments import load_config, validate
from nlft_ray.config import PlanConfig, RunConfig
from nlft_ray.errors import UserError
from nlft_ray.planning.plan import plan
from tests.conftest import ROOT

FILES = sorted((ROOT / "pipelines" / "configs").glob("*.yaml"))
ORDINARY = "gsm8k-llama3-8b"
ROUNDED = 0.1
"""How far a figure in a comment may be from what `plan` says: as far as that may be from what is measured."""
FREE_MAPS = {"label_selector", "columns", "deepspeed", "chat_template_arguments"}
LLAMA_3 = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "max_position_embeddings": 8192,
    "num_key_value_heads": 8,
    "vocab_size": 128_256,
}
SIZES = {
    "8B": {"hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32, "num_attention_heads": 32},
    "70B": {"hidden_size": 8192, "intermediate_size": 28_672, "num_hidden_layers": 80, "num_attention_heads": 64},
}


def name_of(path: Path) -> str:
    return path.stem


def comment(path: Path) -> str:
    """What the file says of itself, on one line."""
    lines = path.read_text().splitlines()
    return " ".join(line.lstrip("# ") for line in lines if line.startswith("#"))


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_run_loads_and_refuses_every_misspelt_key(path: Path) -> None:
    load_config(RunConfig, str(path), [])
    values = yaml.safe_load(path.read_text())
    passed = [where for where, misspelt in misspellings(values) if not refused(misspelt)]
    assert passed == []


def misspellings(values: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Every way of misspelling one key, however deep."""
    found = []
    for key, value in values.items():
        assert key not in FREE_MAPS, "its keys would need a check of their own"
        found.append((key, {f"{name}x" if name == key else name: rest for name, rest in values.items()}))
        if isinstance(value, dict):
            found += [(f"{key}.{where}", {**values, key: inner}) for where, inner in misspellings(value)]
    return found


def refused(values: dict[str, Any]) -> bool:
    try:
        validate(RunConfig, values)
    except UserError as error:
        return "unknown key" in str(error)
    return False


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_run_starts_with_its_command_its_memory_and_its_time(path: Path) -> None:
    text = comment(path)
    assert f"--config pipelines/configs/{path.name}" in text
    assert re.search(r"GPUs: \d", text)
    assert re.search(r"Time: .* not measured", text)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_the_memory_in_the_comment_is_the_plans(path: Path, tmp_path: Path) -> None:
    config = load_config(RunConfig, str(path), [])
    size = config.model.path.rpartition("-")[2]
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_3 | SIZES[size]))
    machines = re.search(r"GPUs: (?:(\d+) × )?(\d+) × (\d+) GB", comment(path))
    assert machines
    nodes, gpus, gigabytes = (int(number or 1) for number in machines.groups())
    found = plan(
        validate(
            PlanConfig,
            {
                "model": {"path": str(tmp_path), "dtype": "bfloat16"},
                "cluster": {
                    "nodes": nodes,
                    "gpus_per_node": gpus,
                    "gpu_memory_gib": gigabytes,
                    "cpus_per_node": 16,
                    "node_memory_gib": 256,
                },
                "score": config.score.model_dump(exclude_unset=True),
                "train": config.train.model_dump(exclude_unset=True, exclude={"gpus_per_worker"}),
            },
        )
    )
    scoring, training = (float(number) for number in re.findall(r"(?:scoring|training) ([\d.]+) GiB", comment(path)))
    assert found.training is not None
    assert found.scoring.memory.total / 2**30 == pytest.approx(scoring, rel=ROUNDED)
    assert found.training.memory.total / 2**30 == pytest.approx(training, rel=ROUNDED)
    assert found.training.fits
    assert config.pool.gpus_per_worker is not None
    assert scoring / config.pool.gpus_per_worker < 0.9 * gigabytes * 10**9 / 2**30


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, marks=() if path.stem == ORDINARY else pytest.mark.exhaustive) for path in FILES],
    ids=name_of,
)
@pytest.mark.usefixtures("ray_local")
@pytest.mark.system
def test_a_run_goes_from_end_to_end_with_a_tiny_model_of_the_architecture(
    path: Path, tmp_path: Path, random_llama: str
) -> None:
    problems = tmp_path / "problems.jsonl"
    rows = [{"question": f"What is {n} + 2?", "answer": f"It is {n + 2}.\n#### {n + 2}"} for n in range(8)]
    problems.write_text("".join(json.dumps(row) + "\n" for row in rows))
    small = [f"run_dir={tmp_path / 'run'}", f"model.path={random_llama}", "model.max_length=512"]
    small += [f"{name}.max_new_tokens=8" for name in ("sample", "judge", "evaluate")]
    for table, count in (("questions", 6), ("test_questions", 2)):
        small += [f"{table}.source={problems}", f"{table}.dataset_name=null", f"{table}.limit={count}"]
    small += ["pool.gpus_per_worker=0", "pool.cpus_per_worker=1", "pool.max_workers=1"]
    small += ["train.gpus_per_worker=0", "train.cpus_per_worker=1", "train.epochs=1"]
    config = load_config(RunConfig, str(path), small)
    workers = min(config.train.least_workers, 2)
    config = config.model_copy(update={"train": config.train.model_copy(update={"num_workers": workers})})
    result = nlft_ray.run(config)
    assert result.scored.manifest.rows_out == 6
    outcome = result.outcomes[0]
    assert outcome.evaluate is not None
    assert outcome.evaluate.manifest.rows_out == 2
    assert (tmp_path / "run" / "report" / "report.html").is_file()
    adapter = json.loads((Path(outcome.train.output) / "weights" / "adapter_config.json").read_text())
    assert (adapter["r"], set(adapter["target_modules"])) == (16, {"gate_proj", "up_proj", "down_proj"})
