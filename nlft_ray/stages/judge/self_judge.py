"""The target model judges its own responses, in this process."""

import pyarrow as pa

from nlft_ray.config import JudgeConfig
from nlft_ray.execution.work import WorkResult
from nlft_ray.models.generation import Decoding, PromptedModel
from nlft_ray.stages.judge.judging import Answer, Row, waits, with_answers
from nlft_ray.tables.schema import EXAMPLES


class SelfJudge:
    """Prompts the model with its own incorrect responses and keeps what it says about them."""

    schema = EXAMPLES

    def __init__(self, config: JudgeConfig):
        """Raises UserError: the model does not load."""
        self._config = config
        self._model = PromptedModel(config.model, config.prompts, config.batch_size)

    def __call__(self, table: pa.Table, seed: int) -> WorkResult:
        rows: list[Row] = table.to_pylist()
        prompts = {index: self._model.prompt("judging", row) for index, row in enumerate(rows) if waits(row)}
        fitting = {index: prompt for index, prompt in prompts.items() if len(prompt) < self._model.max_length}
        decoding = Decoding(self._config.max_new_tokens, self._config.temperature)
        written = self._model.complete(list(fitting.values()), decoding, seed)
        answers = {
            index: Answer(judgment=judgment.text, cut_short=not judgment.ended)
            for index, judgment in zip(fitting, written, strict=True)
        }
        for index in prompts.keys() - fitting.keys():
            length = len(prompts[index])
            answers[index] = Answer(
                failure=f"too long: a judging prompt of {length} tokens leaves no room in {self._model.max_length}"
            )
        worked = with_answers(rows, answers, self._config.disputed_pattern)
        worked.tokens = sum(map(len, fitting.values())) + sum(len(judgment.ids) for judgment in written)
        return worked
