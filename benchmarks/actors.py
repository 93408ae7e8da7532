"""What do Ray and a second actor cost and gain? Scores the same rows in a bare loop, by one actor and by two.

    pip install 'nlft-ray[bench]'
    python benchmarks/actors.py --data ../shared/data/gsm8k --rows 512 --output actors.json

One thread each. Every way runs in a process of its own, one after another, and its time counts from the start of that
process: Python's imports, loading the model and, where it is used, starting Ray. `two loops` are two bare loops at
once, each over half of the rows: what the machine itself gives.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

NAMES = {"loop": "bare loop", "one": "one actor", "loops": "two loops", "two": "two actors"}


def arguments() -> argparse.Namespace:
    shared = os.environ.get("NLFT_SHARED", "../shared")
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, default=Path(shared) / "data/gsm8k", help="folder of GSM8K")
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--shape", choices=("60M", "tiny"), default="60M")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--output", type=Path, help="JSON file of all figures")
    parser.add_argument("--child", nargs=3, metavar=("WAY", "FOLDER", "PART"), help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    given = arguments()
    if given.child:
        from nlft_ray.execution import process

        way, folder, part = given.child
        with process.starting():  # as the command line does
            return work(way, Path(folder), part, given.dtype)
    from measuring import describe_machine, need_data

    need_data(given.data)

    with tempfile.TemporaryDirectory(prefix="actors-") as folder:
        prepare(given, Path(folder))
        seconds = {way: timed(given, way, folder) for way in NAMES}
    machine = describe_machine()
    print(f"{machine}; one thread each; a random Llama of {given.shape} parameters, {given.dtype}; {given.rows} rows")
    for way, name in NAMES.items():
        print(f"{name:<11}{seconds[way]:8.1f} s {given.rows / seconds[way]:7.2f} examples/s")
    print(f"one actor over the bare loop: {seconds['one'] / seconds['loop'] - 1:+.1%}")
    print(f"two actors over one: {seconds['one'] / seconds['two']:.2f} times as fast")
    print(f"two loops over one: {seconds['loop'] / seconds['loops']:.2f} times as fast")
    if given.output:
        given.output.write_text(json.dumps({"machine": machine, "rows": given.rows, "seconds": seconds}, indent=1))


def prepare(given: argparse.Namespace, folder: Path) -> None:
    """Write the model and the examples table."""
    import pyarrow as pa
    import torch
    from scoring_rows import build_rows, build_tokenizer, instruction_of, save_random_model

    from nlft_ray.storage.folder import Folder
    from nlft_ray.tables.manifest import Identity, Manifest, finish
    from nlft_ray.tables.schema import EXAMPLES
    from nlft_ray.tables.shards import DATA

    tokenizer = build_tokenizer(given.data)
    save_random_model(folder / "model", given.shape, getattr(torch, given.dtype), tokenizer)
    rows = build_rows(given.data, tokenizer, given.rows, instruction_of(given.data, tokenizer, None))
    table = pa.Table.from_pylist([dict.fromkeys(EXAMPLES.names) | row for row in rows], schema=EXAMPLES)
    examples = Folder(str(folder / "examples"))
    (examples / DATA).write_table("part-000000.parquet", table)
    identity = Identity(stage="import", table="examples", software_version="0", config={})
    finish(examples, Manifest(identity=identity, rows_in=len(rows), rows_out=len(rows), rows_rejected=0, seconds=0))


def timed(given: argparse.Namespace, way: str, folder: str) -> float:
    parts = ["0/2", "1/2"] if way == "loops" else ["0/1"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    began = time.monotonic()
    running = [
        subprocess.Popen(
            [sys.executable, __file__, "--dtype", given.dtype, "--child", way, folder, part],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for part in parts
    ]
    codes = [process.wait() for process in running]
    if any(codes):
        sys.exit(f"{NAMES[way]} failed")
    return time.monotonic() - began


def work(way: str, folder: Path, part: str, dtype: str) -> None:
    import nlft_ray
    from nlft_ray.config import ScoreConfig

    config = ScoreConfig.model_validate(
        {
            "input": str(folder / "examples"),
            "output": str(folder / way),
            "model": {"path": str(folder / "model"), "dtype": dtype},
            "pool": {"max_workers": 2 if way == "two" else 1, "cpus_per_worker": 1, "rows_per_shard": 16},
        }
    )
    if way not in ("loop", "loops"):
        assert nlft_ray.score(config).manifest.rows_rejected == 0
        return
    import torch

    from nlft_ray.stages.score.worker import ScoreWorker
    from nlft_ray.storage.folder import Folder
    from nlft_ray.tables.shards import plan_shards, read_shard

    torch.set_num_threads(1)
    own, of = map(int, part.split("/"))
    worker, source = ScoreWorker(config), Folder(config.input)
    for shard in plan_shards(source, 16)[own::of]:
        assert not worker(read_shard(source, shard), seed=0).rejects


if __name__ == "__main__":
    main()
