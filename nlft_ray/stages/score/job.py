"""The course of stage `score`: one model in each worker."""

from nlft_ray.config import ScoreConfig
from nlft_ray.execution.table_stage import run_table_stage
from nlft_ray.execution.work import Worker
from nlft_ray.log import log
from nlft_ray.storage.folder import Folder
from nlft_ray.tables.manifest import StageResult
from nlft_ray.tables.shards import UNFINISHED


def score(config: ScoreConfig) -> StageResult:
    """Score examples under the base, judge and standard contexts.

    Raises:
        UserError: see `run_table_stage`.
    """
    result = run_table_stage(config, stage="score", reads="examples", writes="scored", make_worker=_make_worker)
    if not result.reused and result.manifest.counts.get("padded_contexts"):
        log(
            "score: this model mixes rows that stand one after another, so they were padded, and what a row's contexts "
            "share ran for each: that takes longer, the values are the same."
        )
    return result


def _make_worker(config: ScoreConfig) -> Worker:
    from nlft_ray.stages.score.finished_batches import FinishedBatches  # with torch and transformers: in actors alone
    from nlft_ray.stages.score.worker import ScoreWorker

    return ScoreWorker(config, FinishedBatches(Folder(config.output) / UNFINISHED))
