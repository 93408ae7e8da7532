"""Scoring, side by side: this project, lm-evaluation-harness, vLLM, and the pattern of the method's first release.

    pip install 'nlft-ray[bench]'
    python benchmarks/scoring.py --data ../shared/data/gsm8k --output scoring.json

One table for each dtype and length of instruction. Within a table: the same rows, the same random model, the same
threads, each pattern in a process of its own, one after another. Needs Linux, and GSM8K's train.jsonl and
example_model_solutions.jsonl. vLLM wants other versions of torch and transformers than this project: give it an
environment of its own and name that one's Python, `--vllm-python vllm/bin/python`; without, its line is left out.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import harness

NAMES = {"ours": "nlft-ray", "harness": "lm-evaluation-harness", "vllm": "vLLM", "released": "released pattern"}
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.05}  # of a row's mean log-probability


def parse_arguments() -> argparse.Namespace:
    parser = harness.parser_of(__doc__)
    parser.add_argument("--rows", type=int, default=48)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--shape", choices=("60M", "8B", "tiny"), help="default: 8B where there is a GPU, else 60M")
    parser.add_argument("--dtypes", nargs="+", choices=TOLERANCE, help="default: bfloat16 on a GPU, else both")
    parser.add_argument("--instructions", nargs="+", choices=("short", "long"), default=["short", "long"])
    parser.add_argument("--patterns", nargs="+", choices=NAMES, default=[name for name in NAMES if name != "vllm"])
    parser.add_argument("--vllm-python", help="Python of an environment with vLLM, which is measured too")
    parser.add_argument(
        "--rounds", type=int, default=1, help="times that each is measured, in turn; the fastest counts"
    )
    parser.add_argument("--max-tokens-per-batch", type=int, help="of nlft-ray; default: its own")
    parser.add_argument("--harness-batch-size", type=int, help="default: the fastest of several in a trial")
    arguments = parser.parse_args()
    if arguments.vllm_python and "vllm" not in arguments.patterns:
        arguments.patterns.append("vllm")
    if "vllm" in arguments.patterns and not (arguments.vllm_python or arguments.child):
        parser.error("--patterns vllm: name the Python of an environment with vLLM by --vllm-python")
    return arguments


def main() -> None:
    arguments = parse_arguments()
    if arguments.child:
        return run_child(json.loads(arguments.child))
    harness.need_data(arguments.data)
    import torch

    gpu = torch.cuda.is_available()
    shape = arguments.shape or ("8B" if gpu else "60M")
    dtypes = arguments.dtypes or (["bfloat16"] if gpu else ["float32", "bfloat16"])
    machine = harness.describe_machine()
    print(f"{machine}; {arguments.threads} threads; a random Llama of {shape} parameters; {arguments.rows} rows\n")
    tables = []
    for dtype in dtypes:
        for instruction in arguments.instructions:
            with tempfile.TemporaryDirectory() as folder:
                about = prepare(arguments, Path(folder), shape, dtype, instruction)
                tables.append(about | {"measures": measure(arguments, folder, dtype)})
            show(tables[-1])
    if arguments.output:
        figures = {"machine": machine, "threads": arguments.threads, "tables": tables}
        arguments.output.write_text(json.dumps(figures, indent=1))


def prepare(arguments: argparse.Namespace, folder: Path, shape: str, dtype: str, instruction: str) -> dict[str, Any]:
    """Write model, tokenizer and rows into `folder`; returns what the table is about."""
    from scoring_rows import save_inputs

    tokenizer, rows = save_inputs(folder, arguments.data, shape, dtype, arguments.rows, instruction)
    if "vllm" in arguments.patterns:
        from scoring_patterns import save_requests

        save_requests(folder)
    lengths = {
        column: round(sum(len(tokenizer(row[column])["input_ids"]) for row in rows if row[column])
        / sum(row[column] is not None for row in rows))
        for column in ("instruction", "question", "response", "standard_answer", "judgment")
    }  # fmt: skip
    return {"dtype": dtype, "instruction": instruction, "rows": len(rows), "mean_tokens": lengths}


def measure(arguments: argparse.Namespace, folder: str, dtype: str) -> dict[str, Any]:
    """The fastest of several rounds over the patterns: others on the machine only ever make one slower."""
    tasks: dict[str, dict[str, Any]] = {}
    for pattern in arguments.patterns:
        task = {"folder": folder, "dtype": dtype, "threads": arguments.threads, "pattern": pattern}
        options: dict[str, Any] = {}
        if pattern == "ours" and arguments.max_tokens_per_batch:
            options["score"] = {"max_tokens_per_batch": arguments.max_tokens_per_batch}
        if pattern == "harness":
            options["batch_size"] = arguments.harness_batch_size or fastest_batch_size(task)
        if pattern == "vllm":
            task["python"] = arguments.vllm_python
        tasks[pattern] = task | {"options": options}
    rounds = [{pattern: call_child(task) for pattern, task in tasks.items()} for _ in range(arguments.rounds)]
    return {pattern: min((one[pattern] for one in rounds), key=lambda measure: measure["seconds"]) for pattern in tasks}


def fastest_batch_size(task: dict[str, Any]) -> int:
    trials = call_child(task | {"options": {}})["trials"]
    return int(min(trials, key=trials.__getitem__))


def call_child(task: dict[str, Any]) -> dict[str, Any]:
    """Figures of a pattern, which runs in a process of its own."""
    if task["pattern"] == "vllm":
        return harness.call_child(str(Path(__file__).with_name("vllm_pattern.py")), task, python=task["python"])
    return harness.call_child(__file__, task, OMP_NUM_THREADS=str(task["threads"]))


def run_child(task: dict[str, Any]) -> None:
    from scoring_patterns import run_pattern

    folder = Path(task["folder"])
    harness.answer(task, run_pattern(task["pattern"], folder, task["dtype"], task["threads"], task["options"]))


def show(table: dict[str, Any]) -> None:
    measures, ours = table["measures"], table["measures"].get("ours")
    headings = ("", "examples/s", "tokens/s", "time / ours", "CPU time / ours", "peak memory", "memory / ours")
    rows = [row_of(pattern, measure, ours, table["rows"]) for pattern, measure in measures.items()]
    harness.show(f"{table['dtype']}, {table['instruction']} instruction", headings, rows)
    print("mean tokens: " + ", ".join(f"{column} {mean}" for column, mean in table["mean_tokens"].items()))
    if ours:
        print(efficiency(ours))
        check_agreement(measures, TOLERANCE[table["dtype"]])
    print()


def row_of(pattern: str, measure: dict[str, Any], ours: dict[str, Any] | None, examples: int) -> list[str]:
    seconds = measure["seconds"]
    speed = [f"{examples / seconds:.2f}", f"{ours['tokens'] / seconds:.0f}" if ours else ""]
    keys = ("seconds", "cpu_seconds", "peak_bytes")
    ratios = [f"{measure[key] / ours[key]:.2f}" if ours and key in measure else "" for key in keys]
    memory = f"{measure['peak_bytes'] / 2**20:.0f} MiB" if "peak_bytes" in measure else ""
    name = NAMES[pattern] + (f" (batch {measure['batch_size']})" if "batch_size" in measure else "")
    return [name, *speed, *ratios[:2], memory, ratios[2]]


def efficiency(ours: dict[str, Any]) -> str:
    flops = 2 * (ours["body_parameters"] * ours["tokens_run"] + ours["head_parameters"] * ours["head_positions"])
    rate = (flops + ours["attention_flops"]) / ours["seconds"]
    return (
        f"nlft-ray ran {ours['tokens_run']:,} of {ours['tokens']:,} tokens, {ours['padding'] / ours['tokens_run']:.1%} "
        f"of them padding, at {rate / 1e9:.0f} GFLOP/s: "
        f"{rate / ours['matmul_flops']:.0%} of a matrix product's {ours['matmul_flops'] / 1e9:.0f}"
    )


def check_agreement(measures: dict[str, Any], tolerance: float) -> None:
    """Leave where a pattern's log-probabilities are not ours: then its speed would say nothing."""
    ours = measures["ours"]["base_logp"]
    for pattern, measure in measures.items():
        apart = max(abs(a - b) for a, b in zip(ours, measure["base_logp"], strict=True))
        if apart > tolerance:
            sys.exit(f"{pattern}: a row's mean base log-probability differs by {apart:.2g}, more than {tolerance}")
        if pattern != "ours":
            print(f"{NAMES[pattern]}: base log-probabilities agree to {apart:.1g}")


if __name__ == "__main__":
    main()
