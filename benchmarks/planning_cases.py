"""Cases of the planning benchmark: real scoring and training on random Llamas, in processes of their own."""

import ctypes
import gc
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import harness

PROMPT, RESPONSE, ANSWER, JUDGMENT = 64, 96, 32, 24  # tokens of every row
ROWS = 16  # two optimizer steps of two workers
SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"vocab_size": 500, "hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 128},
    "15M": {"vocab_size": 32_000, "hidden_size": 256, "num_hidden_layers": 8, "intermediate_size": 1024},
    "60M": {"vocab_size": 32_000, "hidden_size": 512, "num_hidden_layers": 15, "intermediate_size": 1408},
    "150M": {"vocab_size": 32_000, "hidden_size": 768, "num_hidden_layers": 20, "intermediate_size": 2048},
}
_WORDS = [first + second for first in "abcdefghij" for second in "klmnopqrst"]


def save_model(folder: Path, size: str, dtype: str) -> None:
    """A random Llama with grouped-query attention, and a tokenizer of one word a token."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from nlft_ray.sandbox.tokenizer import build_tokenizer, vocabulary

    torch.manual_seed(0)
    heads = max(SIZES[size]["hidden_size"] // 64, 2)
    config = LlamaConfig(
        **SIZES[size],
        num_attention_heads=heads,
        num_key_value_heads=heads // 2,
        max_position_embeddings=1024,
        tie_word_embeddings=True,  # so that the whole embedding is read: what of a file is not read takes no memory
    )
    LlamaForCausalLM(config).to(getattr(torch, dtype)).save_pretrained(folder)
    build_tokenizer(vocabulary([" ".join(_WORDS)]), 1024).save_pretrained(folder)


def save_scored(folder: Path, model: Path) -> None:
    """A scored table of correct responses, all of one length."""
    from transformers import AutoTokenizer

    from nlft_ray.models.loading import tokenizer_fingerprint
    from nlft_ray.tables.schema import SCORED

    row = {
        "verdict": "correct",
        "response_start": PROMPT,
        "logp_base": [-1.0] * RESPONSE,
        "logp_standard": [-1.0] * RESPONSE,
        "hidden_norm": [1.0] * RESPONSE,
        "hidden_cos": [0.0] * RESPONSE * 8,
    }
    # ids of its own in each row: nothing that prompts could share
    rows = [row | {"id": f"row-{n}", "input_ids": [7 + n] * (PROMPT + RESPONSE)} for n in range(ROWS)]
    tokenizer = tokenizer_fingerprint(AutoTokenizer.from_pretrained(model))
    harness.write_table(folder, [harness.table_of(rows, SCORED)], "scored", stage="score", tokenizer=tokenizer)


def measure(task: dict[str, Any]) -> int:
    """Growth of the memory of the largest of the task's processes, in bytes."""
    environment = {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    with tempfile.TemporaryDirectory() as folder:
        tasks = [task | {"rank": rank, "meeting": f"{folder}/meeting"} for rank in range(task.get("workers", 1))]
        return max(harness.call_children(__file__, tasks, **environment))


def run_child(task: dict[str, Any]) -> int:
    """Do the task on a tiny model, so that everything is imported; then on its own model, and measure that."""
    os.environ["LOCAL_RANK"] = str(task["rank"])
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    if task["stage"] == "train":
        meeting = f"file://{task['meeting']}"
        dist.init_process_group("gloo", init_method=meeting, rank=task["rank"], world_size=task["workers"])
    _do(task, task["tiny"])
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    before = harness.resident()
    harness.reset_resident_peak()
    _do(task, task["folder"])
    return harness.resident_peak() - before


def _do(task: dict[str, Any], folder: str) -> None:
    settings = task["config"] | {"input": f"{folder}/scored", "output": f"{folder}/{task['name']}"}
    settings["model"] = {"path": f"{folder}/model", "dtype": task["dtype"]}
    if task["stage"] == "score":
        _score(settings)
    else:
        _train(settings)


def _score(settings: dict[str, Any]) -> None:
    from nlft_ray.config import ScoreConfig
    from nlft_ray.stages.score.worker import ScoreWorker
    from nlft_ray.tables.schema import EXAMPLES

    templates = {"base": "{{ question }}", "plain": "{{ message }}"}
    templates["judge"] = "{{ question }} {{ judgment }}"
    templates["standard"] = "{{ question }} {{ standard_answer }}"
    row = {
        "verdict": "incorrect",
        "response": "-",
        "response_ids": [7] * RESPONSE,
        "standard_answer": _text(ANSWER),
        "judgment": _text(JUDGMENT),
        "instruction": "",
        "source": "benchmark",
    }
    rows = [row | {"id": f"row-{number}", "question": _text(PROMPT, number)} for number in range(ROWS)]
    worker = ScoreWorker(ScoreConfig(**settings, prompts=templates))  # type: ignore[arg-type]
    result = worker(harness.table_of(rows, EXAMPLES), 0)
    assert len(result.table) == ROWS, result.rejects


def _text(words: int, start: int = 0) -> str:
    return " ".join(_WORDS[(start + number) % len(_WORDS)] for number in range(words))


def _train(settings: dict[str, Any]) -> None:
    """Train as one worker of the group; the first weighs the examples for all."""
    import torch.distributed as dist

    from nlft_ray.config import TrainConfig
    from nlft_ray.stages.train.checkpoints import CHECKPOINTS, Checkpoints
    from nlft_ray.stages.train.loop import train_worker
    from nlft_ray.stages.train.weighing import survey
    from nlft_ray.storage.folder import Folder
    from nlft_ray.tables.manifest import identity_of

    config = TrainConfig(**settings)
    if dist.get_rank() == 0:
        survey(config, identity_of(config, "train"), ROWS)
    dist.barrier()
    train_worker(config, Checkpoints(Folder(config.output) / CHECKPOINTS, keep=1))


if __name__ == "__main__":
    child = json.loads(sys.argv[sys.argv.index("--child") + 1])
    harness.answer(child, run_child(child))
