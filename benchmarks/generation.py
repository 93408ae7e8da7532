"""Generated tokens a second: the engines of `sample` on the same prompts, and vLLM's own rate without the stage.

    pip install 'nlft-ray[vllm,server]'
    python benchmarks/generation.py --model ../SmolLM2-135M-Instruct --questions 50 --draws 2 --output generation.json

Each way runs in a process of its own, one after another; `server` is `vllm serve` on loopback. The clock starts when
the model is loaded and has written a few tokens. Through the stage's worker, prompts, verdicts and rows count as well.
Last, greedy texts of transformers and vLLM are compared, token by token.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import harness
import torch

WAYS = {
    "transformers": "sample, transformers",
    "vllm": "sample, vllm",
    "server": "sample, a vLLM server",
    "alone": "vLLM alone",
}
_SECONDS_TO_START = 600
_WARM_UP_QUESTIONS = 2


def parse_arguments() -> argparse.Namespace:
    parser = harness.parser_of(__doc__)
    parser.add_argument("--model", help="folder of an instruct model")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--questions", type=int, default=50)
    parser.add_argument("--draws", type=int, default=2)
    parser.add_argument("--max-new-tokens", type=int, default=160)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    if arguments.child:
        return work(json.loads(arguments.child))
    harness.need_data(arguments.data)
    task = {name: str(value) if isinstance(value, Path) else value for name, value in vars(arguments).items()}
    found = {way: measured(way, task) for way in arguments.ways}
    print(f"{harness.describe_machine()}; {arguments.questions} questions, {arguments.draws} draws, {arguments.dtype}")
    for way, result in found.items():
        print(f"{WAYS[way]:<24}{result['tokens'] / result['seconds']:8.1f} tokens/s ({result['tokens']} tokens)")
    if {"vllm", "alone"} <= found.keys():
        rates = {way: found[way]["tokens"] / found[way]["seconds"] for way in ("vllm", "alone")}
        print(f"vLLM through the stage: {rates['vllm'] / rates['alone']:.2f} of its own rate")
    if {"vllm", "transformers"} <= found.keys():
        print(f"greedy tokens that differ: {differing(found['vllm']['greedy'], found['transformers']['greedy']):.2%}")
    if arguments.output:
        arguments.output.write_text(json.dumps(found, indent=1))


def measured(way: str, task: dict[str, Any]) -> Any:
    if way != "server":
        return harness.call_child(__file__, task | {"way": way})
    with served(task) as base_url:
        return harness.call_child(__file__, task | {"way": way, "base_url": base_url})


def differing(one: list[list[int]], other: list[list[int]]) -> float:
    """Share of positions whose tokens differ; all that follow a first difference count as they are."""
    pairs = list(zip(one, other, strict=True))
    differ = sum(sum(a != b for a, b in zip(x, y, strict=False)) + abs(len(x) - len(y)) for x, y in pairs)
    return differ / sum(max(len(x), len(y)) for x, y in pairs)


@contextmanager
def served(task: dict[str, Any]) -> Iterator[str]:
    """The address of a vLLM server of the model, which ends with the block."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).with_name("vllm")), "serve", task["model"], "--host", "127.0.0.1"]
    command += ["--port", str(port), "--dtype", task["dtype"], "--max-model-len", "2048", "--max-num-seqs", "128"]
    if not torch.cuda.is_available():  # see models/engines/vllm.py
        command += ["--no-enable-chunked-prefill", "--max-num-batched-tokens", "8192"]
    with tempfile.TemporaryFile() as log:
        server = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            for _ in range(_SECONDS_TO_START):
                if server.poll() is not None:
                    log.seek(0)
                    sys.exit(f"vllm serve ended:\n{log.read().decode()[-4000:]}")
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2).close()
                    break
                except OSError:
                    time.sleep(1)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            server.terminate()
            server.wait(60)


# ---- In a child


def work(task: dict[str, Any]) -> None:
    rows = [json.loads(line) for line in (Path(task["data"]) / "test.jsonl").read_text().splitlines()]
    rows = [{"id": str(number), "question": row["question"]} for number, row in enumerate(rows[: task["questions"]])]
    result = alone(task, rows) if task["way"] == "alone" else through_the_stage(task, rows)
    harness.answer(task, result)


def alone(task: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The engine without the stage: vLLM's own `generate` on the same ids, each prompt `n` times."""
    os.environ["VLLM_LOGGING_LEVEL"] = "ERROR"
    from vllm import LLM, SamplingParams

    from nlft_ray.config import ModelConfig, PromptConfig
    from nlft_ray.models.loading import load_tokenizer
    from nlft_ray.models.prompts import prompt_ids

    tokenizer = load_tokenizer(ModelConfig(path=task["model"]))
    prompts = [{"prompt_token_ids": prompt_ids(tokenizer, PromptConfig(), "base", row)} for row in rows]
    engine = LLM(
        task["model"], dtype=task["dtype"], max_model_len=2048, max_num_seqs=128, skip_tokenizer_init=True,
        generation_config="vllm", enable_chunked_prefill=torch.cuda.is_available(),
    )  # fmt: skip
    wanted = SamplingParams(
        n=task["draws"], max_tokens=task["max_new_tokens"], temperature=1.0, seed=0, detokenize=False,
        stop_token_ids=[tokenizer.eos_token_id],
    )  # fmt: skip
    engine.generate(prompts[:_WARM_UP_QUESTIONS], SamplingParams(max_tokens=8, detokenize=False), use_tqdm=False)
    engine.reset_prefix_cache()
    began = time.perf_counter()
    outputs = engine.generate(prompts, wanted, use_tqdm=False)
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "tokens": sum(len(text.token_ids) for output in outputs for text in output.outputs)}


def through_the_stage(task: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, Any]:
    """All that a worker of `sample` does with a table, its model loaded; and greedy texts, for comparison."""
    from nlft_ray.config import SampleConfig
    from nlft_ray.models.engines.engine import Decoding
    from nlft_ray.stages.sample.worker import SampleWorker
    from nlft_ray.tables.schema import QUESTIONS

    with tempfile.TemporaryDirectory() as folder:
        server = {"base_url": task.get("base_url"), "model": task["model"], "prompts": "ids", "concurrency": 128}
        told = {"engine": task["way"], "batch_size": 128} | (
            {"server": server | {"cache": folder}} if task["way"] == "server" else {}
        )
        config = SampleConfig.model_validate(
            told
            | {"input": folder, "output": folder, "model": {"path": task["model"], "dtype": task["dtype"]}}
            | {"responses_per_question": task["draws"], "max_new_tokens": task["max_new_tokens"], "seed": 1}
        )
        worker = SampleWorker(config)
        table = harness.table_of([row | {"standard_answer": "1"} for row in rows], QUESTIONS)
        worker._model.answer("base", rows[-_WARM_UP_QUESTIONS:], Decoding(8), seed=0)
        began = time.perf_counter()
        worked = worker(table, seed=1)
        seconds = time.perf_counter() - began
        rows_made = worked.table.to_pylist() + [row for row, _ in worked.rejects]
        tokens = sum(len(row["response_ids"]) for row in rows_made)
        greedy = [answer.ids for answer in worker._model.answer("base", rows[:12], Decoding(64), seed=0)]
    return {"seconds": seconds, "tokens": tokens, "greedy": greedy}


if __name__ == "__main__":
    main()
