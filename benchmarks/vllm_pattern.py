"""Scoring by vLLM's `prompt_logprobs`, in an environment of its own, which has vLLM and not this project.

`python vllm_pattern.py --child TASK` measures on the task's folder: a model, and requests.json.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import harness

_WARM_UP_REQUESTS = 4


def run(folder: Path, dtype: str, threads: int) -> dict[str, Any]:
    """Seconds that vLLM takes for all contexts of all rows, and the mean base log-probability of each response."""
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = f"0-{threads - 1}"
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # in this process, whose CPU time is measured
    from vllm import LLM, SamplingParams

    requests = json.loads((folder / "requests.json").read_text())
    longest = max(len(request["ids"]) for request in requests)
    engine = LLM(str(folder), dtype=dtype, max_model_len=longest + 1, skip_tokenizer_init=True)
    # 0: the token's own log-probability and no other's. One token must be generated.
    wanted = SamplingParams(prompt_logprobs=0, max_tokens=1, detokenize=False)
    prompts = [{"prompt_token_ids": request["ids"]} for request in requests]
    engine.generate(prompts[:_WARM_UP_REQUESTS], wanted, use_tqdm=False)
    began, cpu_began = time.perf_counter(), time.process_time()
    outputs = engine.generate(prompts, wanted, use_tqdm=False)
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu_began
    base = [pair for pair in zip(requests, outputs, strict=True) if pair[0]["context"] == "base"]
    means = [_mean_logp(request["ids"], request["response_start"], output.prompt_logprobs) for request, output in base]
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "base_logp": means}


def _mean_logp(ids: list[int], start: int, entries: Any) -> float:
    logps = [entry[token].logprob for token, entry in zip(ids[start:], entries[start:], strict=True)]
    return sum(logps) / len(logps)


if __name__ == "__main__":
    task = json.loads(sys.argv[2])
    harness.answer(task, run(Path(task["folder"]), task["dtype"], task["threads"]))
