"""Training, side by side: this project, TRL's SFTTrainer, the pattern of the method's first release, and plain torch.

    pip install 'nlft-ray[bench]'
    python benchmarks/training.py --data ../shared/data/gsm8k --output training.json

One table for each dtype and length of instruction. Within a table: the same rows in steps of the same size, the same
random model with the same adapters and optimizer, the same threads, each pattern in a process of its own, one after
another. Needs Linux, and GSM8K's train.jsonl and example_model_solutions.jsonl.
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import harness

NAMES = {
    "ours": "nlft-ray, 1 worker, ZeRO 0",
    "ours2": "nlft-ray, 2 workers, ZeRO 2",
    "without_ray": "nlft-ray's loop under DeepSpeed, without Ray",
    "plain": "the same loop in plain torch",
    "trl": "TRL SFTTrainer",
    "released": "released pattern",
}
MICRO_BATCH_SIZES = (1, 2, 4)  # tried for each pattern that has a choice; the fastest counts


def parse_arguments() -> argparse.Namespace:
    parser = harness.parser_of(__doc__)
    parser.add_argument("--steps", type=int, default=12, help="measured optimizer steps")
    parser.add_argument("--warm-up-steps", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=4, help="examples of an optimizer step")
    parser.add_argument(
        "--micro-batch-size", type=int, help="examples of a pass; default: the fastest, pattern by pattern"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--shape", choices=("60M", "8B", "tiny"), help="default: 8B where there is a GPU, else 60M")
    parser.add_argument("--dtypes", nargs="+", choices=("float32", "bfloat16"), default=["float32", "bfloat16"])
    parser.add_argument("--instructions", nargs="+", choices=("short", "long"), default=["short", "long"])
    parser.add_argument("--patterns", nargs="+", choices=NAMES, default=list(NAMES))
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    if arguments.child:
        return run_child(json.loads(arguments.child))
    harness.need_data(arguments.data)
    import torch

    shape = arguments.shape or ("8B" if torch.cuda.is_available() else "60M")
    machine = harness.describe_machine()
    print(
        f"{machine}; {arguments.threads} threads; a random Llama of {shape} parameters, LoRA of rank 16; "
        f"{arguments.steps} steps of {arguments.batch_size} examples after {arguments.warm_up_steps} that do not "
        "count\n"
    )
    tables = []
    for dtype in arguments.dtypes:
        for instruction in arguments.instructions:
            with tempfile.TemporaryDirectory() as folder:
                about = prepare(arguments, Path(folder), shape, dtype, instruction)
                tables.append(about | {"measures": measure(arguments, folder, dtype)})
            show(tables[-1], arguments.batch_size)
            if arguments.output:
                about = {"machine": machine, "threads": arguments.threads, "batch_size": arguments.batch_size}
                arguments.output.write_text(json.dumps(about | {"tables": tables}, indent=1))


def prepare(arguments: argparse.Namespace, folder: Path, shape: str, dtype: str, instruction: str) -> dict[str, Any]:
    """Write model, tokenizer and scored rows into `folder`; returns what the table is about."""
    from scoring_rows import save_inputs
    from training_patterns import write_scored

    count = (arguments.steps + arguments.warm_up_steps) * arguments.batch_size
    _, rows = save_inputs(folder / "model", arguments.data, shape, dtype, count, instruction)
    lengths = write_scored(folder, rows)
    return {"dtype": dtype, "instruction": instruction, "rows": count, "mean_tokens": lengths}


def measure(arguments: argparse.Namespace, folder: str, dtype: str) -> dict[str, Any]:
    task = {
        "folder": folder,
        "dtype": dtype,
        "threads": arguments.threads,
        "batch_size": arguments.batch_size,
        "warm_up_steps": arguments.warm_up_steps,
    }
    measures = {}
    for pattern in arguments.patterns:
        sizes = [arguments.micro_batch_size] if arguments.micro_batch_size else MICRO_BATCH_SIZES
        if pattern == "released":  # an example at a time is what makes the pattern
            sizes = [1]
        if pattern == "ours2":
            sizes = [size for size in sizes if size <= arguments.batch_size // 2] or [1]
        trials = []
        for size in sizes:
            trials.append(call_child(task | {"pattern": pattern, "micro_batch_size": size}))
            seconds = trials[-1]["seconds"]
            print(f"{NAMES[pattern]}, micro-batches of {size}: {seconds:.1f} s", file=sys.stderr, flush=True)
        measures[pattern] = min(trials, key=lambda trial: trial["seconds"])
        measures[pattern]["tried"] = {trial["micro_batch_size"]: trial["seconds"] for trial in trials}
    return measures


def call_child(task: dict[str, Any]) -> dict[str, Any]:
    """Figures of a pattern, which runs in a process of its own."""
    environment = {"HF_HUB_OFFLINE": "1", "DS_ACCELERATOR": os.environ.get("DS_ACCELERATOR", "cpu")}
    return harness.call_child(__file__, task, OMP_NUM_THREADS=str(task["threads"]), **environment)


def run_child(task: dict[str, Any]) -> None:
    from training_patterns import run_pattern

    harness.answer(task, run_pattern(task))


def show(table: dict[str, Any], batch_size: int) -> None:
    measures, ours = table["measures"], table["measures"].get("ours")
    headings = ("", "micro-batch", "examples/s", "s/step", "time / ours", "peak memory", "memory / ours", "start-up")
    rows = [row_of(pattern, measure, ours, batch_size) for pattern, measure in measures.items()]
    harness.show(f"{table['dtype']}, {table['instruction']} instruction", headings, rows)
    print("mean tokens: " + ", ".join(f"{what} {mean:.0f}" for what, mean in table["mean_tokens"].items()))
    if ours and "plain" in measures:
        apart = abs(ours["losses"][0] / measures["plain"]["losses"][0] - 1)
        print(f"plain torch finds the same first loss, to {apart:.1g}")
    print()


def row_of(pattern: str, measure: dict[str, Any], ours: dict[str, Any] | None, batch_size: int) -> list[str]:
    step = measure["seconds"] / measure["steps"]
    ratios = [f"{measure[key] / ours[key]:.2f}" if ours else "" for key in ("seconds", "peak_bytes")]
    start_up = f"{measure['start_up_seconds']:.1f} s" if "start_up_seconds" in measure else ""
    size, peak = str(measure["micro_batch_size"]), f"{measure['peak_bytes'] / 2**20:.0f} MiB"
    return [NAMES[pattern], size, f"{batch_size / step:.2f}", f"{step:.3f}", ratios[0], peak, ratios[1], start_up]


if __name__ == "__main__":
    main()
