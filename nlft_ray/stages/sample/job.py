"""The course of stage `sample`: one model in each worker."""

from nlft_ray.config import SampleConfig
from nlft_ray.execution.table_stage import run_table_stage
from nlft_ray.execution.work import Worker
from nlft_ray.models.engines.conversation import with_cache
from nlft_ray.stages.verifiers import load_verifier
from nlft_ray.tables.manifest import StageResult


def sample(config: SampleConfig) -> StageResult:
    """Draw responses and reach verdicts.

    Raises:
        UserError: see `run_table_stage`; the verifier cannot be loaded; or the engine is not
            installed, or its server cannot be reached, or refuses the key or the model.
    """
    load_verifier(config.verifier)  # a mistake here should not wait for an actor
    return run_table_stage(
        with_cache(config, "answer_cache"),
        stage="sample",
        reads="questions",
        writes="responses",
        make_worker=_make_worker,
        loads_model=config.server is None,
        renders_prompts=True,
        seed=config.seed,
        rows_per_input=config.responses_per_question,
    )


def _make_worker(config: SampleConfig) -> Worker:
    from nlft_ray.stages.sample.worker import SampleWorker  # with torch and transformers: in actors alone

    return SampleWorker(config)
