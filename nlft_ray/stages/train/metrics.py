"""The record of a training: a line of JSON for each optimizer step, and the same for TensorBoard."""

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

METRICS, TENSORBOARD = "metrics.jsonl", "tensorboard"


@dataclass(frozen=True)
class StepMetrics:
    """What one optimizer step did, over all workers."""

    step: int
    """Counts from 1."""
    epoch: int
    """Counts from 1."""
    loss: float
    loss_likelihood: float
    """The part of the loss that raises tokens by the policy's weights."""
    loss_unlikelihood: float
    """The part that lowers tokens."""
    loss_anchor: float
    """The part of the plain likelihood term that a policy adds to correct responses."""
    gradient_norm: float
    """Before it is limited by max_gradient_norm."""
    learning_rate: float
    examples: int
    weighted_tokens: int
    seconds: float


def read_metrics(output: Path) -> list[dict[str, Any]]:
    """The lines written so far. The last may be cut short by a kill, or still be in the writing: it is left out."""
    path = output / METRICS
    if not path.is_file():
        return []
    *whole, _ = path.read_text().split("\n")
    return [json.loads(line) for line in whole]


class MetricsLog:
    """Writes the record. A resumed training takes back the steps that it will take again, so none is there twice."""

    def __init__(self, output: Path, steps_done: int):
        from torch.utils.tensorboard import SummaryWriter  # torch: only who writes the record shall wait for it

        kept = [line for line in read_metrics(output) if line["step"] <= steps_done]
        output.mkdir(parents=True, exist_ok=True)
        written = output / f".{METRICS}"
        written.write_text("".join(json.dumps(line) + "\n" for line in kept))
        written.replace(output / METRICS)
        shutil.rmtree(output / TENSORBOARD, ignore_errors=True)
        self._board = SummaryWriter(output / TENSORBOARD)
        for line in kept:
            self._draw(line)
        self._file = (output / METRICS).open("a")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        self._board.close()

    def add(self, metrics: StepMetrics) -> None:
        line = asdict(metrics)
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        self._draw(line)

    def _draw(self, line: dict[str, Any]) -> None:
        for name, value in line.items():
            if name != "step":
                self._board.add_scalar(name, value, line["step"])
