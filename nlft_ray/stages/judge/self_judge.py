"""Judgments by the target model itself, in this process."""

import pyarrow as pa

from nlft_ray.config import JudgeConfig
from nlft_ray.execution.replica import prompted_model
from nlft_ray.execution.work import WorkResult
from nlft_ray.models.engines.engine import Decoding
from nlft_ray.stages.judge.judging import Answer, Row, needs_judgment, with_answers
from nlft_ray.tables.schema import EXAMPLES


class SelfJudge:
    """A worker that shows the model its own incorrect responses and asks what is wrong with them."""

    schema = EXAMPLES

    def __init__(self, config: JudgeConfig):
        """Raises UserError: the model does not load."""
        self._config = config
        self._model = prompted_model(config)

    def __call__(self, table: pa.Table, seed: int) -> WorkResult:
        rows: list[Row] = table.to_pylist()
        indices = [index for index, row in enumerate(rows) if needs_judgment(row)]
        decoding = Decoding(self._config.max_new_tokens, self._config.temperature)
        judgments = self._model.answer("ask_judgment", [rows[index] for index in indices], decoding, seed)
        answers = {
            index: Answer(judgment.text, failure=judgment.problem or "", cut_short=not judgment.ended)
            for index, judgment in zip(indices, judgments, strict=True)
        }
        result = with_answers(rows, answers, self._config.disputed_pattern)
        result.tokens = sum(judgment.tokens for judgment in judgments)
        return result
