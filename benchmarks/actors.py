"""Cost of Ray, and gain of a second actor: the same rows scored in a bare loop, by one actor and by two.

    pip install 'nlft-ray[bench]'
    python benchmarks/actors.py --data ../shared/data/gsm8k --rows 512 --output actors.json

One thread each. Every way runs in a process of its own, one after another, and its time counts from the start of that
process: Python's imports, loading the model and, where it is used, starting Ray. `two loops` are two bare loops at
once, each over half of the rows: what the machine itself gives.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import harness

NAMES = {"loop": "bare loop", "one": "one actor", "loops": "two loops", "two": "two actors"}


def parse_arguments() -> argparse.Namespace:
    parser = harness.parser_of(__doc__)
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--shape", choices=("60M", "tiny"), default="60M")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    if arguments.child:
        from nlft_ray.execution import process

        with process.starting():  # imports, of which the work is full
            return work(json.loads(arguments.child))
    harness.need_data(arguments.data)
    with tempfile.TemporaryDirectory(prefix="actors-") as folder:
        prepare(arguments, Path(folder))
        seconds = {way: timed(arguments, way, folder) for way in NAMES}
    machine = harness.describe_machine()
    model = f"a random Llama of {arguments.shape} parameters, {arguments.dtype}"
    print(f"{machine}; one thread each; {model}; {arguments.rows} rows")
    for way, name in NAMES.items():
        print(f"{name:<11}{seconds[way]:8.1f} s {arguments.rows / seconds[way]:7.2f} examples/s")
    print(f"one actor over the bare loop: {seconds['one'] / seconds['loop'] - 1:+.1%}")
    print(f"two actors over one: {seconds['one'] / seconds['two']:.2f} times as fast")
    print(f"two loops over one: {seconds['loop'] / seconds['loops']:.2f} times as fast")
    if arguments.output:
        figures = {"machine": machine, "rows": arguments.rows, "seconds": seconds}
        arguments.output.write_text(json.dumps(figures, indent=1))


def prepare(arguments: argparse.Namespace, folder: Path) -> None:
    """Write the model and the examples table."""
    from scoring_rows import save_inputs

    from nlft_ray.tables.schema import EXAMPLES

    _, rows = save_inputs(folder / "model", arguments.data, arguments.shape, arguments.dtype, arguments.rows)
    harness.write_table(folder / "examples", [harness.table_of(rows, EXAMPLES)], "examples")


def timed(arguments: argparse.Namespace, way: str, folder: str) -> float:
    task, parts = {"way": way, "folder": folder, "dtype": arguments.dtype}, 2 if way == "loops" else 1
    began = time.monotonic()
    tasks = [task | {"part": part, "parts": parts} for part in range(parts)]
    harness.call_children(__file__, tasks, OMP_NUM_THREADS="1")
    return time.monotonic() - began


def work(task: dict[str, Any]) -> None:
    import nlft_ray
    from nlft_ray.config import ScoreConfig

    way, folder = task["way"], Path(task["folder"])
    config = ScoreConfig.model_validate(
        {
            "input": str(folder / "examples"),
            "output": str(folder / way),
            "model": {"path": str(folder / "model"), "dtype": task["dtype"]},
            "pool": {"max_workers": 2 if way == "two" else 1, "cpus_per_worker": 1, "rows_per_shard": 16},
        }
    )
    if way not in ("loop", "loops"):
        assert nlft_ray.score(config).manifest.rows_rejected == 0
        return harness.answer(task, None)
    import torch

    from nlft_ray.stages.score.worker import ScoreWorker
    from nlft_ray.storage.folder import Folder
    from nlft_ray.tables.shards import plan_shards, read_shard

    torch.set_num_threads(1)
    worker, source = ScoreWorker(config), Folder(config.input)
    for shard in plan_shards(source, 16)[task["part"] :: task["parts"]]:
        assert not worker(read_shard(source, shard), seed=0).rejects
    harness.answer(task, None)


if __name__ == "__main__":
    main()
