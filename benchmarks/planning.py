"""Predictions of `nlft-ray plan` beside the memory that scoring and training really take.

    python benchmarks/planning.py --output planning.json

Random Llamas of three sizes on a CPU, every measurement in processes of its own. What is measured is the growth of the
process's resident memory from before the model is loaded to its highest (the kernel's VmHWM). Needs Linux and 8 GiB.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import harness
from planning_cases import ANSWER, JUDGMENT, PROMPT, RESPONSE, SIZES, measure, save_model, save_scored

# stage, dtype, settings; a training takes two optimizer steps, the second with Adam's states
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "score": ("score", "float32", {"max_tokens_per_batch": 1024}),
    "lora": ("train", "float32", {}),
    "full": ("train", "float32", {"lora": None}),
    "lora, 2 × ZeRO 2": ("train", "float32", {"num_workers": 2, "zero_stage": 2}),
    "full, 2 × ZeRO 2": ("train", "float32", {"num_workers": 2, "zero_stage": 2, "lora": None}),
    "full, 2 × ZeRO 1": ("train", "float32", {"num_workers": 2, "zero_stage": 1, "lora": None}),
    "full, 2 × ZeRO 3": ("train", "float32", {"num_workers": 2, "zero_stage": 3, "lora": None}),
    "lora, checkpointed": ("train", "float32", {"gradient_checkpointing": True}),
    "full, accumulated": ("train", "float32", {"lora": None, "micro_batch_size_per_worker": 2, "batch_size": 4}),
    "score, bfloat16": ("score", "bfloat16", {"max_tokens_per_batch": 1024}),
    "lora, bfloat16": ("train", "bfloat16", {}),
    "full, bfloat16": ("train", "bfloat16", {"lora": None}),
}
EVERY_SIZE = list(CASES)[:5]
_PER_WORKER = 4  # examples of an optimizer step


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    sizes = [size for size in SIZES if size != "tiny"]
    parser.add_argument("--sizes", nargs="+", choices=sizes, default=sizes)
    parser.add_argument("--cases", nargs="+", choices=CASES, help="default: all at 60M, the first five elsewhere")
    parser.add_argument("--output", type=Path, help="JSON file of all figures")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    comparisons = []
    with tempfile.TemporaryDirectory() as folder:
        for size in arguments.sizes:
            for case in arguments.cases or (CASES if size == "60M" else EVERY_SIZE):
                comparisons.append(compare(Path(folder), size, case))
                print(f"{size} {case}: {comparisons[-1]['ratio']:.2f}", flush=True)
    show(comparisons)
    if arguments.output:
        arguments.output.write_text(json.dumps(comparisons, indent=1))


def compare(folder: Path, size: str, case: str) -> dict[str, Any]:
    stage, dtype, changes = CASES[case]
    settings = changes if stage == "score" else training_settings(changes)
    task: dict[str, Any] = {"stage": stage, "name": case, "dtype": dtype, "config": settings}
    task |= {"workers": settings.get("num_workers", 1), "tiny": str(prepare(folder, "tiny", dtype))}
    task |= {"folder": str(prepare(folder, size, dtype))}
    predicted, moment = predict(Path(task["folder"], "model"), stage, dtype, settings)
    measured = measure(task)
    return {
        "size": size,
        "case": case,
        "predicted_bytes": predicted,
        "measured_bytes": measured,
        "ratio": predicted / measured,
        "highest_at": moment,
    }


def prepare(folder: Path, size: str, dtype: str) -> Path:
    """A folder with model and scored table; made once."""
    place = folder / f"{size}-{dtype}"
    if not place.exists():
        save_model(place / "model", size, dtype)
        save_scored(place / "scored", place / "model")
    return place


def training_settings(changes: dict[str, Any]) -> dict[str, Any]:
    workers = changes.get("num_workers", 1)
    usual = {"policy": {"name": "rft"}, "epochs": 1, "max_steps": 2, "batch_size": _PER_WORKER * workers}
    return usual | {"micro_batch_size_per_worker": _PER_WORKER} | changes


def predict(model: Path, stage: str, dtype: str, settings: dict[str, Any]) -> tuple[int, str]:
    from nlft_ray import plan
    from nlft_ray.config import PlanConfig
    from nlft_ray.planning.choice import TrainingSearch

    lengths = {"prompt_tokens": PROMPT, "response_tokens": RESPONSE}
    lengths |= {"standard_answer_tokens": ANSWER, "judgment_tokens": JUDGMENT}
    config = PlanConfig(
        model={"path": str(model), "dtype": dtype},  # type: ignore[arg-type]
        lengths=lengths,  # type: ignore[arg-type]
        cluster={"gpus_per_node": 0},  # type: ignore[arg-type]
        **{stage: settings},  # type: ignore[arg-type]
    )
    result = plan(config)
    if stage == "score":
        return result.scoring.memory.total, result.scoring.memory.moment
    options = config.train
    adapters = result.adapters if options.lora else None
    search = TrainingSearch(config, result.shape, adapters, result.devices, {"float32": 4, "bfloat16": 2}[dtype])
    memory = search.choice(
        options.zero_stage,
        options.gradient_checkpointing,
        options.least_workers,
        options.micro_batch_size_per_worker,
    ).memory
    return memory.total, memory.moment


def show(comparisons: list[dict[str, Any]]) -> None:
    headings = ("model", "what runs", "predicted, MiB", "measured, MiB", "predicted / measured", "highest at")
    rows = []
    for one in comparisons:
        sizes = (f"{one[key] / 2**20:,.0f}" for key in ("predicted_bytes", "measured_bytes"))
        rows.append((one["size"], one["case"], *sizes, f"{one['ratio']:.2f}", one["highest_at"]))
    harness.show(None, headings, rows, left=2)


if __name__ == "__main__":
    main()
