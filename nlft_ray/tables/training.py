"""The folder of a training: weighed examples, a line of metrics for each step, and the trained model weights."""

import json
from typing import Any

from nlft_ray.storage.folder import Folder

WEIGHTS = "weights"
"""Folder of the trained weights: a PEFT adapter, or a whole model."""
WEIGHED_EXAMPLES = "examples"
"""Folder of what was trained on: Arrow files of `schema.WEIGHED`, and `survey.json`, the record of the weighing."""
METRICS = "metrics.jsonl"
"""File with a line of JSON for each optimizer step (fields of `stages.train.metrics.StepMetrics`)."""


def read_metrics(output: Folder) -> list[dict[str, Any]]:
    """The lines written so far. The last may be cut short by a kill, or still be in the writing: it is left out."""
    if not output.has(METRICS):
        return []
    *whole, _ = output.read_text(METRICS).split("\n")
    return [json.loads(line) for line in whole]
