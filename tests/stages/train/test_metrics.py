"""The record of the steps."""

from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from nlft_ray.stages.train.metrics import METRICS, MetricsLog, StepMetrics, read_metrics


def metrics(step: int, loss: float = 1.0) -> StepMetrics:
    return StepMetrics(step, 1, loss, loss, 0.0, 0.0, 1.0, 0.1, 4, 20, 0.5)


def test_a_resumed_record_has_every_step_once(tmp_path: Path) -> None:
    with MetricsLog(tmp_path, 0) as log:
        for step in (1, 2, 3, 4):
            log.add(metrics(step))
    with (tmp_path / METRICS).open("a") as file:
        file.write('{"step": 5, "lo')  # killed while it wrote
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 3, 4]
    with MetricsLog(tmp_path, 2) as log:
        log.add(metrics(3, loss=7.0))
    assert [(line["step"], line["loss"]) for line in read_metrics(tmp_path)] == [(1, 1.0), (2, 1.0), (3, 7.0)]
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in board.Scalars("loss")] == [(1, 1.0), (2, 1.0), (3, 7.0)]
