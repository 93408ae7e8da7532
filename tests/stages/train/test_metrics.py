"""The record of the steps."""

from pathlib import Path

from nlft_ray.stages.train.metrics import MetricsLog, StepMetrics, cut_record
from nlft_ray.storage.folder import Folder
from nlft_ray.tables.training import METRICS
from tests.stages.train.support import record


def metrics(step: int, loss: float = 1.0) -> StepMetrics:
    return StepMetrics(step, 1, loss, loss, 0.0, 0.0, 1.0, 0.1, 4, 20, 2, 0.5)


def test_a_resumed_record_has_every_step_once(tmp_path: Path) -> None:
    with MetricsLog(Folder(str(tmp_path)), []) as log:
        for step in (1, 2):
            log.add(metrics(step))
        checkpoint = list(log.lines)
        for step in (3, 4):
            log.add(metrics(step))
    with (tmp_path / METRICS).open("a") as file:
        file.write('{"step": 5, "lo')  # killed while it wrote
    assert [line["step"] for line in record(tmp_path)] == [1, 2, 3, 4]
    with MetricsLog(Folder(str(tmp_path)), checkpoint) as log:
        log.add(metrics(3, loss=7.0))
    assert [(line["step"], line["loss"]) for line in record(tmp_path)] == [(1, 1.0), (2, 1.0), (3, 7.0)]
    cut_record(Folder(str(tmp_path)), 2)
    assert [line["step"] for line in record(tmp_path)] == [1, 2]


def test_a_record_in_a_store_is_whole(tmp_path: Path) -> None:
    """fsspec's way to the same local folder behaves as a store does: files are written whole."""
    output = Folder(f"fsspec+file://{tmp_path}/out")
    assert not output.is_local
    with MetricsLog(output, []) as log:
        log.add(metrics(1))
        log.add(metrics(2))
    assert [line["step"] for line in record(str(output))] == [1, 2]
