"""A tiny random model with a tokenizer, scored tables made up for it, and training without Ray."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from transformers import LlamaConfig, LlamaForCausalLM

from nlft_ray.config import TrainConfig
from nlft_ray.models import tokenizer_fingerprint
from nlft_ray.sandbox.tokenizer import build_tokenizer, vocabulary
from nlft_ray.settings import validate
from tests.tables import write_table

os.environ |= {"DS_ACCELERATOR": "cpu", "LOCAL_RANK": "0"}  # what DeepSpeed reads when it is imported

WORDS = ["a b c d e f g h i j k l m n o p"]
WINDOW = 2


def save_model(folder: Path, *, tied: bool = True) -> str:
    """A Llama of a few thousand parameters. Its weights are large, so that small errors show in its logits."""
    tokens = vocabulary(WORDS)
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokens),
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=64,
            initializer_range=0.3,
            tie_word_embeddings=tied,
        )
    )
    model.save_pretrained(folder)
    build_tokenizer(tokens, 64).save_pretrained(folder)
    return str(folder)


def scored_row(number: int, *, correct: bool, generator: np.random.Generator) -> dict[str, Any]:
    """A row of made-up facts, which give all kinds of weights."""
    prompt, n = int(generator.integers(2, 6)), int(generator.integers(1, 9))
    draw = lambda: np.log(generator.uniform(0.02, 0.999, n)).astype(np.float32).tolist()  # noqa: E731
    ids = lambda length: generator.integers(6, len(vocabulary(WORDS)), length).tolist()  # noqa: E731
    return {
        "id": f"row-{number:03d}",
        "verdict": "correct" if correct else "incorrect",
        "input_ids": ids(prompt + n),
        "response_start": prompt,
        "logp_base": draw(),
        "logp_judge": None if correct else draw(),
        "logp_standard": draw(),
        "hidden_norm": [1.0] * n,
        "hidden_cos": generator.uniform(-1, 1, n * WINDOW).astype(np.float32).tolist(),
        "standard_ids": ids(int(generator.integers(1, 7))),
    }


def scored_rows(count: int = 11) -> list[dict[str, Any]]:
    generator = np.random.default_rng(0)
    return [scored_row(number, correct=number % 2 == 0, generator=generator) for number in range(count)]


def save_scored(folder: Path, model: str, rows: list[dict[str, Any]] | None = None, rows_per_file: int = 4) -> str:
    from transformers import AutoTokenizer

    fingerprint = tokenizer_fingerprint(AutoTokenizer.from_pretrained(model))
    return write_table(folder, "scored", scored_rows() if rows is None else rows, rows_per_file, fingerprint)


def train_config(folder: str, scored: str, output: Path | str, **changes: Any) -> TrainConfig:
    values = {
        "model": {"path": folder},
        "input": scored,
        "output": str(output),
        "epochs": 2,
        "lora": None,
        "learning_rate": 0.01,
        "cpus_per_worker": 1,
    }
    return validate(TrainConfig, values | changes)


class LocalSession:
    """A worker's session without Ray: checkpoints are copied into a folder."""

    def __init__(self, folder: Path, rank: int = 0, world_size: int = 1, stop_after: int | None = None):
        self.rank, self.world_size = rank, world_size
        self._folder, self._stop_after = folder, stop_after
        self.saved: list[int] = []

    @contextmanager
    def latest_checkpoint(self) -> Iterator[Path | None]:
        kept = sorted(self._folder.glob("*")) if self._folder.exists() else []
        yield kept[-1] if kept else None

    def save_checkpoint(self, folder: Path, step: int) -> None:
        shutil.copytree(folder, self._folder / f"{step:06d}", dirs_exist_ok=True)  # the workers' files side by side
        self.saved.append(step)
        dist.barrier()
        if step == self._stop_after:
            raise Stopped


class Stopped(Exception):
    """The training was stopped here, as a lost machine would."""
