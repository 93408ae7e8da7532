"""Scored folders and runs to report on."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from nlft_ray.analysis.model_card import CARD, new_card
from nlft_ray.analysis.run import read_training
from nlft_ray.config import ModelConfig, ReportConfig, ScoreConfig
from nlft_ray.models.loading import model_fingerprint
from nlft_ray.stages.report.job import report
from nlft_ray.storage.folder import Folder
from nlft_ray.tables.manifest import Identity, Manifest, finish, input_fingerprint, read_manifest
from nlft_ray.tables.schema import EXAMPLES
from tests.rows import example, write_table

HOSTILE = (
    "</script><script>window.pwned=1</script><img src=x onerror='window.pwned=2'>"
    "\"quotes\" 'single' `${window.pwned=3}` &amp; <!-- \\u003c "
    "\x00\x07\x1b[31m\x7f\u2028\u2029\u202eright to left\u202c\u200b\ttab\r\nשלום עולם مرحبا 👩‍👩‍👧 é\n"
)

EXAMPLE_ROWS = [
    example("right", correct=True),
    example("wrong", correct=False),
    example("open", correct=False, standard_answer=None),
    example("longer", correct=False, response="2 + 2, let me see: one, two, three, five. #### 5"),
    example("grüße", correct=True, response="vier 🙂\n\n#### 4", question="Wie viel ist 2 + 2?", instruction="Knapp."),
    example("right without an answer", correct=True, standard_answer=None),
]
HOSTILE_ROWS = [
    example(
        "<b onclick=x>id</b>",
        correct=False,
        question=f"Q {HOSTILE}",
        judgment=f"J {HOSTILE}",
        response=f"R {HOSTILE}",
        standard_answer=f"A {HOSTILE}",
    ),
    example("rtl", correct=True, question="כמה זה 2 + 2?", response="שלום 🙂 4", standard_answer="4"),
]


def score(model: str, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows as the real scorer scores them. Prompts are short, for the model's few positions; responses are whole."""
    from nlft_ray.stages.score.worker import ScoreWorker

    config = ScoreConfig.model_validate({"input": "i", "output": "o", "model": {"path": model}})
    full = [dict.fromkeys(EXAMPLES.names) | {name: _short(row.get(name)) for name in row} for row in rows]
    full = [
        row | {name: original[name] for name in ("id", "response")} for row, original in zip(full, rows, strict=True)
    ]
    worked = ScoreWorker(config)(pa.Table.from_pylist(full, schema=EXAMPLES), seed=0)
    assert worked.rejects == []
    return worked.table.to_pylist()


def _short(value: Any) -> Any:
    return value[:30] if isinstance(value, str) else value


def random_rows(count: int, tokens: int | None = None, seed: int = 0) -> list[dict[str, Any]]:
    """Scored rows with probabilities on all sides of every threshold, and hidden states that change slowly."""
    random = np.random.default_rng(seed)
    return [_random_row(random, f"random-{number}", tokens) for number in range(count)]


def _random_row(random: np.random.Generator, id: str, tokens: int | None) -> dict[str, Any]:
    n = tokens or int(random.integers(1, 60))
    correct, standard = bool(random.random() < 0.5), bool(random.random() < 0.85)
    hidden = np.cumsum(random.normal(size=(n, 6)), axis=0) + random.normal(size=(n, 6))
    norm = np.linalg.norm(hidden, axis=1)
    cosines = np.zeros((n, 8))
    for k in range(min(8, n - 1)):
        cosines[: n - k - 1, k] = (hidden[: n - k - 1] * hidden[k + 1 :]).sum(1) / (norm[: n - k - 1] * norm[k + 1 :])

    def logp() -> list[float]:
        return (-np.exp(random.normal(-2, 2.5, n))).astype(np.float32).tolist()

    return {
        "id": id,
        "verdict": "correct" if correct else "incorrect",
        "input_ids": random.integers(40, 90, n + 3).tolist(),
        "response_start": 3,
        "logp_base": logp(),
        "logp_judge": None if correct else logp(),
        "logp_standard": logp() if standard else None,
        "top_standard": random.integers(40, 90, n).tolist() if standard else None,
        "top_logp_standard": logp() if standard else None,
        "hidden_norm": norm.astype(np.float32).tolist(),
        "hidden_cos": cosines.astype(np.float32).ravel().tolist(),
    }


def write_scored(folder: Path, rows: Sequence[dict[str, Any]], model: str, input: str | None = None) -> str:
    """A scored folder that says which model it was scored with, and what it was made from."""
    write_table(folder, "scored", rows)
    identity = Identity(
        stage="score", table="scored", software_version="test", config={"model": {"path": model}}, input=input
    )
    finish(Folder(str(folder)), _manifest(identity, len(rows), tokens=1234))
    return str(folder)


def write_run(folder: Path, model: str, rows: Sequence[dict[str, Any]], scored: list[dict[str, Any]]) -> str:
    """A run folder as the chain leaves it: two policies trained, three evaluations."""
    examples = write_table(folder / "examples", "examples", rows)
    made_from = input_fingerprint(read_manifest(Folder(examples), table="examples"))
    write_scored(folder / "scored", scored, model, made_from)
    for policy, weight in (("nlft", 1.0), ("rft", 0.5)):
        _write_training(folder / "trained" / policy, policy, weight)
    for name, right in (("before", [True, False, False]), ("nlft", [False, True, False]), ("rft", [True, True, True])):
        _write_predictions(folder / "predictions" / name, right)
    return str(folder)


def _manifest(identity: Identity, rows: int, **fields: Any) -> Manifest:
    return Manifest(identity=identity, rows_in=rows, rows_out=rows, **({"rows_rejected": 0, "seconds": 2.0} | fields))


def _write_training(folder: Path, policy: str, weight: float) -> None:
    folder.mkdir(parents=True)
    lines = [
        {
            "step": step,
            "epoch": 1,
            "loss": weight / step,
            "loss_likelihood": weight / step,
            "loss_unlikelihood": 0.1 / step if policy == "nlft" else 0.0,
            "loss_anchor": 0.2 / step if policy == "nlft" else 0.0,
            "gradient_norm": 2.0,
            "learning_rate": 1e-4,
            "examples": 4,
            "weighted_tokens": 40,
            "seconds": 0.5,
        }
        for step in range(1, 11)
    ]
    cut_short = '{"step": 11, "ep'
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + cut_short)
    numbers = {"theta": 0.9} if policy == "nlft" else {}
    config = {"policy": {"name": policy, **numbers}, "model": {"path": "org/base"}}
    identity = Identity(stage="train", table="weights", software_version="test", config=config)
    reasons = {"reject_reasons": {"no <b>weight</b>": 2}, "rows_rejected": 2}
    finish(Folder(str(folder)), _manifest(identity, 4, **reasons))


def write_export(folder: Path, run: Path, model: str) -> None:
    """The random model as if it were what policy nlft trained, with the card that export writes."""
    shutil.copytree(model, folder)
    training = read_training(Folder(str(run / "trained" / "nlft")))
    Folder(str(folder)).write_text(CARD, new_card(training, training.stages[0], base={}, adapter=False))
    made_from = input_fingerprint(training.stages[0].manifest)
    identity = Identity(stage="export", table="model", software_version="test", config={}, input=made_from)
    finish(Folder(str(folder)), _manifest(identity, 4))
    weights = model_fingerprint(ModelConfig(path=str(folder)))
    _write_predictions(run / "predictions" / "nlft", [False, True, False], weights)


def _write_predictions(folder: Path, right: list[bool], model: str | None = None) -> None:
    rows = [
        {"id": str(number), "question": f"<i>{number}</i>", "completion": f"#### {good}", "correct": good}
        for number, good in enumerate(right)
    ]
    write_table(folder, "predictions", rows)
    identity = Identity(stage="evaluate", table="predictions", software_version="test", config={}, model=model)
    counts = {"correct": float(sum(right)), "accuracy": sum(right) / 3, "accuracy_low": 0.1, "accuracy_high": 0.9}
    finish(Folder(str(folder)), _manifest(identity, 3, counts=counts))


def write_report(input: str, **settings: Any) -> Path:
    """Write a report; returns the HTML file."""
    return Path(report(ReportConfig.model_validate({"input": input, **settings})).output)
