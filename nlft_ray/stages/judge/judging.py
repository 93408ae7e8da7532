"""The rules that both judges share: which rows need a judgment, and what becomes of them once there is one."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from nlft_ray.execution.work import WorkResult
from nlft_ray.tables.schema import EXAMPLES, INCORRECT

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Answer:
    """A judge's answer about one response, or the reason why there is none."""

    judgment: str = ""
    failure: str = ""
    cut_short: bool = False
    """The judge had more to say than `max_new_tokens`."""


def needs_judgment(row: Row) -> bool:
    """Whether a row lacks a judgment. Correct responses need none, and one that stands there is kept."""
    return row["verdict"] == INCORRECT and not row["judgment"]


def with_answers(rows: Sequence[Row], answers: Mapping[int, Answer], disputed_pattern: str) -> WorkResult:
    """The examples, in the order of `rows`; `answers` holds one for the index of each row that needs one.

    A disputed row is set aside: by its judge the verdict is wrong, so its tokens would be lowered for no reason.
    """
    counts = Counter[str]({"incorrect": sum(row["verdict"] == INCORRECT for row in rows)})
    examples: list[Row] = []
    result = WorkResult(EXAMPLES.empty_table())
    for index, row in enumerate(rows):
        answer = answers.get(index)
        if answer is None:
            examples.append(row)
            continue
        judged = {**row, "judgment": answer.judgment}
        if answer.failure:
            result.rejects.append((row, answer.failure))
        elif not answer.judgment:
            result.rejects.append((row, "the judgment is empty"))
        elif re.search(disputed_pattern, answer.judgment):
            counts["disputed"] += 1
            result.set_aside.append((judged, "disputed: the judge says that the response is right"))
        else:
            counts["judged"] += 1
            counts["judgments_cut_short"] += answer.cut_short
            examples.append(judged)
    result.table = pa.Table.from_pylist(examples, schema=EXAMPLES)
    result.counts = {name: float(count) for name, count in counts.items()}
    return result
