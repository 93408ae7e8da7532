"""The target model judges its own responses, in this process."""

import pyarrow as pa

from nlft_ray.config import JudgeConfig
from nlft_ray.generation import Decoding, Generator
from nlft_ray.models import end_of_turn_id, load_model, load_tokenizer, max_length
from nlft_ray.prompts import prompt_ids
from nlft_ray.schema import EXAMPLES
from nlft_ray.shards import Worked
from nlft_ray.stages.judge.judging import Answer, Row, waits, with_answers


class SelfJudge:
    """Prompts the model with its own incorrect responses and keeps what it says about them."""

    schema = EXAMPLES

    def __init__(self, config: JudgeConfig):
        """Raises UserError: the model does not load."""
        self._config = config
        self._decoding = Decoding(config.max_new_tokens, config.temperature)
        self._tokenizer = load_tokenizer(config.model)
        self._max_length = max_length(config.model)
        self._end_of_turn = end_of_turn_id(self._tokenizer, config.model)
        self._generate = Generator(
            load_model(config.model),
            end_of_turn=self._end_of_turn,
            max_length=self._max_length,
            batch_size=config.batch_size,
        )

    def __call__(self, table: pa.Table, seed: int) -> Worked:
        rows: list[Row] = table.to_pylist()
        prompts = {index: self._prompt(row) for index, row in enumerate(rows) if waits(row)}
        fitting = {index: prompt for index, prompt in prompts.items() if len(prompt) < self._max_length}
        written = self._generate(list(fitting.values()), self._decoding, seed) if fitting else []
        answers = {index: self._answer(ids) for index, ids in zip(fitting, written, strict=True)}
        for index in prompts.keys() - fitting.keys():
            length = len(prompts[index])
            answers[index] = Answer(
                failure=f"too long: a judging prompt of {length} tokens leaves no room in {self._max_length}"
            )
        worked = with_answers(rows, answers, self._config.disputed_pattern)
        worked.tokens = sum(map(len, fitting.values())) + sum(map(len, written))
        return worked

    def _prompt(self, row: Row) -> list[int]:
        return prompt_ids(self._tokenizer, self._config.prompts, "judging", row)

    def _answer(self, ids: list[int]) -> Answer:
        judgment = self._tokenizer.decode(ids, skip_special_tokens=True).strip()
        return Answer(judgment=judgment, cut_short=ids[-1] != self._end_of_turn)
