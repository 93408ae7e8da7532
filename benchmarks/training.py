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
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from measuring import describe_machine, need_data

NAMES = {
    "ours": "nlft-ray, 1 worker, ZeRO 0",
    "ours2": "nlft-ray, 2 workers, ZeRO 2",
    "without_ray": "nlft-ray's loop under DeepSpeed, without Ray",
    "plain": "the same loop in plain torch",
    "trl": "TRL SFTTrainer",
    "released": "released pattern",
}
MICRO_BATCH_SIZES = (1, 2, 4)  # tried for each pattern that has a choice; the fastest counts


def arguments() -> argparse.Namespace:
    shared = os.environ.get("NLFT_SHARED", "../shared")
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, default=Path(shared) / "data/gsm8k", help="folder of GSM8K")
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
    parser.add_argument("--output", type=Path, help="JSON file of all figures")
    parser.add_argument("--child", help=argparse.SUPPRESS)  # how the script calls itself: a pattern, as JSON
    return parser.parse_args()


def main() -> None:
    given = arguments()
    if given.child:
        return run_child(json.loads(given.child))
    need_data(given.data)
    import torch

    shape = given.shape or ("8B" if torch.cuda.is_available() else "60M")
    machine = describe_machine()
    print(
        f"{machine}; {given.threads} threads; a random Llama of {shape} parameters, LoRA of rank 16; "
        f"{given.steps} steps of {given.batch_size} examples after {given.warm_up_steps} that do not count\n"
    )
    tables = []
    for dtype in given.dtypes:
        for instruction in given.instructions:
            with tempfile.TemporaryDirectory() as folder:
                about = prepare(given, Path(folder), shape, dtype, instruction)
                tables.append(about | {"measures": measure(given, folder, dtype)})
            show(tables[-1], given.batch_size)
            if given.output:
                found = {"machine": machine, "threads": given.threads, "batch_size": given.batch_size, "tables": tables}
                given.output.write_text(json.dumps(found, indent=1))


def prepare(given: argparse.Namespace, folder: Path, shape: str, dtype: str, instruction: str) -> dict[str, Any]:
    """Write model, tokenizer and scored rows into `folder`; returns what the table is about."""
    import torch
    from scoring_rows import LONG_INSTRUCTION_TOKENS, build_rows, build_tokenizer, instruction_of, save_random_model
    from training_patterns import write_scored

    tokenizer = build_tokenizer(given.data)
    save_random_model(folder / "model", shape, getattr(torch, dtype), tokenizer)
    text = instruction_of(given.data, tokenizer, LONG_INSTRUCTION_TOKENS if instruction == "long" else None)
    count = (given.steps + given.warm_up_steps) * given.batch_size
    rows = build_rows(given.data, tokenizer, count, text)
    (folder / "rows.json").write_text(json.dumps(rows))
    lengths = write_scored(folder, rows)
    return {"dtype": dtype, "instruction": instruction, "rows": count, "mean_tokens": lengths}


def measure(given: argparse.Namespace, folder: str, dtype: str) -> dict[str, Any]:
    task = {
        "folder": folder,
        "dtype": dtype,
        "threads": given.threads,
        "batch_size": given.batch_size,
        "warm_up_steps": given.warm_up_steps,
    }
    measures = {}
    for pattern in given.patterns:
        sizes = [given.micro_batch_size] if given.micro_batch_size else MICRO_BATCH_SIZES
        if pattern == "released":  # an example at a time is what makes the pattern
            sizes = [1]
        if pattern == "ours2":
            sizes = [size for size in sizes if size <= given.batch_size // 2] or [1]
        tried = []
        for size in sizes:
            tried.append(call_child(task | {"pattern": pattern, "micro_batch_size": size}))
            print(
                f"{NAMES[pattern]}, micro-batches of {size}: {tried[-1]['seconds']:.1f} s", file=sys.stderr, flush=True
            )
        measures[pattern] = min(tried, key=lambda found: found["seconds"])
        measures[pattern]["tried"] = {found["micro_batch_size"]: found["seconds"] for found in tried}
    return measures


def call_child(task: dict[str, Any]) -> dict[str, Any]:
    """Run a pattern in a process of its own, so that no pattern's memory is another's."""
    with tempfile.NamedTemporaryFile() as answer:
        command = [sys.executable, __file__, "--child", json.dumps(task | {"answer": answer.name})]
        environment = os.environ | {
            "OMP_NUM_THREADS": str(task["threads"]),
            "TRANSFORMERS_VERBOSITY": "error",
            "HF_HUB_OFFLINE": "1",
            "DS_ACCELERATOR": os.environ.get("DS_ACCELERATOR", "cpu"),
        }
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{task['pattern']} failed:\n{done.stderr[-4000:]}")
        return json.loads(Path(answer.name).read_text())


def run_child(task: dict[str, Any]) -> None:
    from training_patterns import run_pattern

    Path(task["answer"]).write_text(json.dumps(run_pattern(task)))


def show(table: dict[str, Any], batch_size: int) -> None:
    from rich.console import Console
    from rich.table import Table

    measures = table["measures"]
    columns = ("", "micro-batch", "examples/s", "s/step", "time / ours", "peak memory", "memory / ours", "start-up")
    drawn = Table(*columns, title=f"{table['dtype']}, {table['instruction']} instruction")
    ours = measures.get("ours")
    for pattern, found in measures.items():
        step = found["seconds"] / found["steps"]
        ratios = [f"{found[key] / ours[key]:.2f}" if ours else "" for key in ("seconds", "peak_bytes")]
        start_up = f"{found['start_up_seconds']:.1f} s" if "start_up_seconds" in found else ""
        size, peak = str(found["micro_batch_size"]), f"{found['peak_bytes'] / 2**20:.0f} MiB"
        drawn.add_row(
            NAMES[pattern], size, f"{batch_size / step:.2f}", f"{step:.3f}", ratios[0], peak, ratios[1], start_up
        )
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(drawn)
    console.print("mean tokens: " + ", ".join(f"{what} {mean:.0f}" for what, mean in table["mean_tokens"].items()))
    if ours and "plain" in measures:
        apart = abs(ours["losses"][0] / measures["plain"]["losses"][0] - 1)
        console.print(f"plain torch finds the same first loss, to {apart:.1g}")
    console.print()


if __name__ == "__main__":
    main()
