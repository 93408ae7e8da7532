"""Judgments by a chat server."""

from typing import Any

import pyarrow as pa

from nlft_ray.config import JudgeConfig
from nlft_ray.execution.work import WorkResult
from nlft_ray.models.engines.chat import RequestFailed
from nlft_ray.models.engines.conversation import Conversation
from nlft_ray.models.prompts import chat_messages
from nlft_ray.stages.judge.judging import Answer, Row, needs_judgment, with_answers
from nlft_ray.tables.schema import EXAMPLES


class ServerJudge:
    """A worker that sends incorrect responses to `config.server`, whose cache folder must be set."""

    schema = EXAMPLES

    def __init__(self, config: JudgeConfig):
        assert config.server is not None
        self._config, self._server = config, config.server

    def __call__(self, table: pa.Table, seed: int) -> WorkResult:
        """Ask for the judgments of a table. `seed` goes unused: an answer must not depend on how the table is cut.

        Raises:
            UserError: the `openai` package is missing, the key's variable is unset, or the server cannot be reached,
                or refuses the key or the model.
        """
        rows: list[Row] = table.to_pylist()
        indices = [index for index, row in enumerate(rows) if needs_judgment(row)]
        conversation = Conversation(self._server)
        answers = conversation.answers([self._request(conversation, rows[index]) for index in indices])
        judged = dict(zip(indices, map(_judgment, answers), strict=True))
        result = with_answers(rows, judged, self._config.disputed_pattern)
        result.counts |= {name: float(count) for name, count in conversation.counts.items()}
        result.tokens = conversation.tokens
        return result

    def _request(self, conversation: Conversation, row: Row) -> dict[str, Any]:
        config = self._config
        return conversation.chat_request(
            chat_messages(config.prompts, "ask_judgment", row),
            config.max_new_tokens,
            temperature=config.temperature,
            **({"seed": config.seed} if config.temperature else {}),
        )


def _judgment(answer: dict[str, Any] | RequestFailed) -> Answer:
    if isinstance(answer, RequestFailed):
        return Answer(failure=str(answer))
    return Answer(judgment=answer["judgment"], cut_short=answer["finish_reason"] == "length")
