"""The course of stage `judge`: one model in each worker, or one server for all."""

from nlft_ray.config import JudgeConfig
from nlft_ray.execution.table_stage import run_table_stage
from nlft_ray.execution.work import Worker
from nlft_ray.models.engines.conversation import with_cache
from nlft_ray.tables.manifest import StageResult


def judge(config: JudgeConfig) -> StageResult:
    """Give each incorrect response a judgment. Disputed rows are left out, and stand among the rejects.

    Raises:
        UserError: see `run_table_stage`; or the server cannot be reached, or refuses the key or the model.
    """
    return run_table_stage(
        with_cache(config, "judgment_cache"),
        stage="judge",
        reads=("responses", "examples"),
        writes="examples",
        make_worker=_make_worker,
        seed=config.seed,
        loads_model=config.server is None,
    )


def _make_worker(config: JudgeConfig) -> Worker:
    if config.server is None:
        from nlft_ray.stages.judge.self_judge import SelfJudge  # with torch and transformers: in actors alone

        return SelfJudge(config)
    from nlft_ray.stages.judge.server_judge import ServerJudge

    return ServerJudge(config)
