"""The course of stage `evaluate`: one model in each worker, and the accuracy of them all."""

from nlft_ray.config import EvaluateConfig
from nlft_ray.errors import UserError
from nlft_ray.execution.table_stage import run_table_stage
from nlft_ray.execution.work import Worker
from nlft_ray.models.engines.conversation import with_cache
from nlft_ray.stages.evaluate.accuracy import wilson_interval
from nlft_ray.stages.verifiers import load_verifier
from nlft_ray.tables.manifest import Manifest, StageResult


def evaluate(config: EvaluateConfig) -> StageResult:
    """Measure accuracy; the manifest's counts hold `accuracy`, `accuracy_low` and `accuracy_high` (Wilson, 95 %).

    Raises:
        UserError: see `run_table_stage`; the verifier cannot be loaded; or the engine is not
            installed, or its server cannot be reached, or refuses the key or the model.
    """
    load_verifier(config.verifier)
    return run_table_stage(
        with_cache(config, "answer_cache"),
        stage="evaluate",
        reads="questions",
        writes="predictions",
        make_worker=_make_worker,
        loads_model=config.server is None,
        renders_prompts=True,
        summarise=_accuracy,
    )


def _make_worker(config: EvaluateConfig) -> Worker:
    from nlft_ray.stages.evaluate.worker import EvaluateWorker  # with torch and transformers: in actors alone

    return EvaluateWorker(config)


def _accuracy(manifest: Manifest) -> dict[str, float]:
    if manifest.rows_out == 0:
        raise UserError("evaluate: no question could be asked, so there is no accuracy.")
    low, high = wilson_interval(int(manifest.counts["correct"]), manifest.rows_out)
    return {
        "accuracy": manifest.counts["correct"] / manifest.rows_out,
        "accuracy_low": low,
        "accuracy_high": high,
    }
