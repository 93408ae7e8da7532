"""A tiny random model with a tokenizer, scored tables made up for it, and training without Ray."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from nlft_ray.cli.arguments import validate
from nlft_ray.config import TrainConfig
from nlft_ray.models.loading import tokenizer_fingerprint
from nlft_ray.sandbox.tokenizer import build_tokenizer, vocabulary
from nlft_ray.stages.train.checkpoints import Checkpoints
from nlft_ray.stages.train.examples import ExampleTable
from nlft_ray.stages.train.loop import train_worker
from nlft_ray.stages.train.weighing import TRAINED, survey
from nlft_ray.storage.folder import Folder
from nlft_ray.tables.manifest import identity_of, read_manifest
from nlft_ray.tables.training import WEIGHED_EXAMPLES, read_metrics
from tests.rows import write_table

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


def save_scored(
    folder: Path | str, model: str, rows: list[dict[str, Any]] | None = None, rows_per_file: int = 4
) -> str:
    from transformers import AutoTokenizer

    fingerprint = tokenizer_fingerprint(AutoTokenizer.from_pretrained(model))
    made_by = {"model": {"path": model}}
    return write_table(folder, "scored", scored_rows() if rows is None else rows, rows_per_file, fingerprint, made_by)


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


def weigh(config: TrainConfig) -> ExampleTable:
    """The weighed examples of a training, written as its start does it before there are workers."""
    survey(config, identity_of(config, "train"), read_manifest(Folder(config.input), table="scored").rows_out)
    return ExampleTable(Folder(config.output) / WEIGHED_EXAMPLES, TRAINED)


def train_alone(config: TrainConfig, checkpoints: Checkpoints) -> None:
    """Weigh and train in this process, which is the only worker."""
    weigh(config)
    train_worker(config, checkpoints)


class StoppingCheckpoints(Checkpoints):
    """Checkpoints of a worker; with `stop_after`, training breaks off right after that step's."""

    def __init__(self, folder: str | Path, stop_after: int | None = None):
        super().__init__(Folder(str(folder)), keep=1)
        self._stop_after = stop_after
        self.saved: list[int] = []

    def save(self, engine: Any, steps_done: int, seed: int, metrics: list[dict[str, Any]]) -> None:
        super().save(engine, steps_done, seed, metrics)
        self.saved.append(steps_done)
        if steps_done == self._stop_after:
            self.finish()
            raise Stopped


def record(output: str | Path) -> list[dict[str, Any]]:
    """The metrics that a training wrote, step by step."""
    return read_metrics(Folder(str(output)))


class Stopped(Exception):
    """The training was stopped here, as a lost machine would."""
