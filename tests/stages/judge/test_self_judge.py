"""The target model as its own judge, in process, with a real model."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from nlft_ray.config import JudgeConfig
from nlft_ray.stages.judge.self_judge import SelfJudge
from nlft_ray.tables.schema import EXAMPLES
from tests.rows import example


def config(model: Path, **options: Any) -> JudgeConfig:
    told = {"input": "in", "output": "out", "model": {"path": str(model)}, "max_new_tokens": 12}
    return JudgeConfig.model_validate(told | options)


def table(*rows: dict[str, Any]) -> pa.Table:
    return pa.Table.from_pylist([dict.fromkeys(EXAMPLES.names) | row for row in rows], schema=EXAMPLES)


ROWS = [
    example("a", correct=True),
    example("b", correct=False, judgment=None),
    example("c", correct=False),
    example("d", correct=False, judgment=None, response="2 + 2 is 22."),
]


def test_only_incorrect_responses_without_judgment_are_judged(tinystories: Path) -> None:
    worked = SelfJudge(config(tinystories))(table(*ROWS), seed=0)
    assert worked.table.schema.equals(EXAMPLES)
    assert worked.counts == {"incorrect": 3, "judged": 2, "judgments_cut_short": 2}
    rows = worked.table.to_pylist()
    given = {row["id"]: row.pop("judgment") for row in rows}
    assert rows == [
        {name: value for name, value in row.items() if name != "judgment"} for row in table(*ROWS).to_pylist()
    ]
    assert given["a"] is None
    assert given["c"] == "It adds one too many."
    assert all(given[id] and given[id] == given[id].strip() for id in "bd")
    assert worked.tokens > 2 * 12


def test_the_judgment_is_what_the_prompt_asks_for(tinystories: Path) -> None:
    """Another question, another judgment; the same question, the same one, whatever else is in the table."""
    judge = SelfJudge(config(tinystories))
    alone = judge(table(ROWS[1]), seed=0).table.to_pylist()[0]["judgment"]
    among = {row["id"]: row["judgment"] for row in judge(table(*ROWS), seed=1).table.to_pylist()}
    assert among["b"] == alone
    assert among["d"] != alone


def test_sampling_follows_the_seed(tinystories: Path) -> None:
    judge = SelfJudge(config(tinystories, temperature=1.0))
    first, again, other = (judge(table(ROWS[1]), seed=seed).table.to_pylist() for seed in (1, 1, 2))
    assert first == again
    assert first != other


@pytest.mark.parametrize("pattern", [r"\w", r"^"])
def test_disputed_rows_are_set_aside(tinystories: Path, pattern: str) -> None:
    worked = SelfJudge(config(tinystories, disputed_pattern=pattern))(table(*ROWS), seed=0)
    assert [row["id"] for row in worked.table.to_pylist()] == ["a", "c"]
    assert [row["id"] for row, _ in worked.set_aside] == ["b", "d"]
    assert worked.counts["disputed"] == 2
    assert worked.rejects == []


def test_a_prompt_without_room_is_rejected_with_its_length(tinystories: Path) -> None:
    long = example("long", correct=False, judgment=None, response="again " * 600)
    worked = SelfJudge(config(tinystories))(table(*ROWS, long), seed=0)
    ((row, reason),) = worked.rejects
    assert row["id"] == "long"
    assert reason.startswith("too long: its ask_judgment prompt of ")
    assert reason.endswith(" tokens leaves no room in 512")
    assert worked.counts["judged"] == 2


def test_a_table_without_work_needs_no_generation(tinystories: Path) -> None:
    worked = SelfJudge(config(tinystories))(table(ROWS[0], ROWS[2]), seed=0)
    assert worked.table.equals(table(ROWS[0], ROWS[2]))
    assert worked.tokens == 0
