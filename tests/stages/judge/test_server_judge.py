"""The server judge in process, against a server whose behaviour the test writes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from nlft_ray.config import JudgeConfig
from nlft_ray.errors import UserError
from nlft_ray.execution.work import WorkResult
from nlft_ray.models.engines.conversation import Conversation
from nlft_ray.stages.judge.server_judge import ServerJudge
from nlft_ray.tables.schema import EXAMPLES
from tests.rows import example
from tests.stages.judge.fake_server import FakeServer, Reply, serving

Make = Callable[..., ServerJudge]


def waiting(id: str, **changes: Any) -> dict[str, Any]:
    return example(id, correct=False, judgment=None, response=f"2 + 2 is not {id}.", **changes)


def table(*rows: dict[str, Any]) -> pa.Table:
    return pa.Table.from_pylist([dict.fromkeys(EXAMPLES.names) | row for row in rows], schema=EXAMPLES)


def config(folder: Path, base_url: str, server: dict[str, Any] | None = None, **options: Any) -> JudgeConfig:
    told = {"base_url": base_url, "model": "judge-1", "cache": str(folder / "cache"), "max_retries": 2}
    return JudgeConfig.model_validate(
        {"input": "in", "output": str(folder / "out"), "model": {"path": "sandbox"}, "server": told | (server or {})}
        | options
    )


def judged(folder: Path, fake: FakeServer, *rows: dict[str, Any], **options: Any) -> WorkResult:
    return ServerJudge(config(folder, fake.base_url, **options))(table(*rows), seed=0)


def always(**fields: Any) -> Callable[[dict[str, Any], int], Reply]:
    return lambda request, number: Reply(**fields)


def by_response(request: dict[str, Any], number: int) -> Reply:
    """Judges `2 + 2 is not 7.` with `Wrong: 7`."""
    said = request["messages"][-1]["content"].partition("2 + 2 is not ")[2].partition(".")[0]
    return Reply(text=f" Wrong: {said}\n")


def test_only_incorrect_responses_without_judgment_are_asked_about(tmp_path: Path) -> None:
    rows = [example("a", correct=True), waiting("7"), example("b", correct=False), waiting("8")]
    with serving(by_response) as fake:
        worked = judged(tmp_path, fake, *rows)
    assert worked.table.schema.equals(EXAMPLES)
    assert worked.table.to_pylist() == [
        dict.fromkeys(EXAMPLES.names) | row | ({"judgment": f"Wrong: {row['id']}"} if row["id"] in "78" else {})
        for row in rows
    ]
    assert worked.counts == {
        "incorrect": 3,
        "judged": 2,
        "judgments_cut_short": 0,
        "requests": 2,
        "cache_hits": 0,
    }
    assert worked.tokens == 20


def test_the_request_holds_instruction_prompt_and_parameters(tmp_path: Path) -> None:
    with serving(by_response) as fake:
        judged(tmp_path, fake, waiting("7", instruction="Be brief."), max_new_tokens=99)
        judged(tmp_path, fake, waiting("7"), temperature=0.5, seed=3)
        judged(tmp_path, fake, waiting("7", instruction="Be brief."), prompts={"instruction_role": "user"})
    first, second, third = fake.requests
    assert first["messages"][0] == {"role": "system", "content": "Be brief."}
    assert "2 + 2 is not 7." in first["messages"][1]["content"]
    assert {name: value for name, value in first.items() if name != "messages"} == {
        "model": "judge-1",
        "temperature": 0.0,
        "max_tokens": 99,
    }
    assert [message["role"] for message in second["messages"]] == ["user"]
    assert (second["temperature"], second["seed"]) == (0.5, 3)
    assert third["messages"][0]["content"].startswith("Be brief.\n\n")


def test_disputed_rows_are_set_aside_and_empty_judgments_rejected(tmp_path: Path) -> None:
    texts = {1: "CORRECT.", 2: "  ", 3: "It is not correct: 5.", 4: "cut off in the mid"}

    def behave(request: dict[str, Any], number: int) -> Reply:
        return Reply(text=texts[number], finish_reason="length" if number == 4 else "stop")

    with serving(behave) as fake:
        worked = judged(tmp_path, fake, *map(waiting, "1234"), server={"concurrency": 1})
    assert [row["id"] for row in worked.table.to_pylist()] == ["3", "4"]
    assert [(row["id"], reason) for row, reason in worked.rejects] == [("2", "the judgment is empty")]
    ((row, reason),) = worked.set_aside
    assert (row["id"], row["judgment"]) == ("1", "CORRECT.")
    assert reason == "disputed: the judge says that the response is right"
    assert (worked.counts["disputed"], worked.counts["judgments_cut_short"]) == (1, 1)


def test_requests_run_at_once_but_no_more_than_allowed(tmp_path: Path) -> None:
    with serving(always(seconds=0.1)) as fake:
        judged(tmp_path, fake, *map(waiting, "123456789"), server={"concurrency": 3})
    assert fake.most_under_way == 3


def test_equal_requests_are_sent_once(tmp_path: Path) -> None:
    rows = [waiting("7") | {"id": id} for id in "abc"]
    with serving(by_response) as fake:
        worked = judged(tmp_path, fake, *rows)
    assert len(fake.requests) == 1
    assert [row["judgment"] for row in worked.table.to_pylist()] == ["Wrong: 7"] * 3


def test_nothing_is_paid_for_twice(tmp_path: Path) -> None:
    rows = [*map(waiting, "123"), waiting("4")]
    with serving(by_response) as fake:
        judged(tmp_path, fake, *rows[:3])
        worked = judged(tmp_path, fake, *rows)
        assert len(fake.requests) == 4
        assert (worked.counts["requests"], worked.counts["cache_hits"]) == (1, 3)
        assert [row["judgment"] for row in worked.table.to_pylist()] == [f"Wrong: {n}" for n in "1234"]
        judged(tmp_path, fake, rows[0], max_new_tokens=9)  # another request
        assert len(fake.requests) == 5
    gone = ServerJudge(config(tmp_path, fake.base_url))(table(*rows), seed=1)
    assert (gone.counts["requests"], gone.counts["cache_hits"]) == (0, 4)


def test_a_damaged_cache_file_is_asked_about_again(tmp_path: Path) -> None:
    with serving(by_response) as fake:
        judged(tmp_path, fake, waiting("1"))
        (file,) = (tmp_path / "cache").rglob("*.json")
        for damaged in ("", "{", "[]", '{"answer": 1}'):
            file.write_text(damaged)
            worked = judged(tmp_path, fake, waiting("1"))
            assert worked.counts["requests"] == 1
            assert json.loads(file.read_text())["answer"]["judgment"] == "Wrong: 1"


@pytest.mark.parametrize("status", [429, 500, 503])
def test_passing_failures_are_tried_again(tmp_path: Path, status: int) -> None:
    def behave(request: dict[str, Any], number: int) -> Reply:
        return Reply(status=status) if number < 3 else Reply()

    with serving(behave) as fake:
        worked = judged(tmp_path, fake, waiting("1"))
    assert (len(fake.requests), worked.counts["judged"], worked.counts["requests"]) == (3, 1, 1)


def test_back_off_grows(tmp_path: Path) -> None:
    import time

    moments: list[float] = []

    def behave(request: dict[str, Any], number: int) -> Reply:
        moments.append(time.monotonic())
        return Reply(status=503, retry_after=None) if number < 3 else Reply()

    with serving(behave) as fake:
        judged(tmp_path, fake, waiting("1"))
    first, second = moments[1] - moments[0], moments[2] - moments[1]
    assert 0.3 < first < second


def test_a_row_that_keeps_failing_is_rejected_and_not_cached(tmp_path: Path) -> None:
    def behave(request: dict[str, Any], number: int) -> Reply:
        failing = "not 2." in request["messages"][-1]["content"]
        return Reply(status=503, body={"error": {"message": "overloaded"}}) if failing else Reply()

    with serving(behave) as fake:
        worked = judged(tmp_path, fake, *map(waiting, "123"))
    assert [row["id"] for row in worked.table.to_pylist()] == ["1", "3"]
    ((row, reason),) = worked.rejects
    assert (row["id"], row["judgment"]) == ("2", None)
    assert reason == "the server failed with status 503: 3 tries, overloaded"
    assert len(list((tmp_path / "cache").rglob("*.json"))) == 2


def test_slow_answers_are_given_up(tmp_path: Path) -> None:
    def behave(request: dict[str, Any], number: int) -> Reply:
        return Reply(seconds=1.0 if "not 2." in request["messages"][-1]["content"] else 0.0)

    with serving(behave) as fake:
        worked = judged(tmp_path, fake, *map(waiting, "12"), server={"timeout_seconds": 0.3, "max_retries": 1})
    ((row, reason),) = worked.rejects
    assert (row["id"], reason) == ("2", "the server did not answer: 2 tries of 0.3 s")


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (Reply(status=400, body={"error": {"message": "too\n long"}}), "the server refused with status 400: too long"),
        (Reply(status=422, body={"detail": "no"}), "the server refused with status 422: no"),
        (Reply(body={"hello": "world"}), "the server's answer is no completion"),
        (Reply(body=["hello"]), "the server's answer is no completion"),
    ],
)
def test_answers_of_no_use_concern_their_row(tmp_path: Path, reply: Reply, reason: str) -> None:
    with serving(lambda request, number: reply) as fake:
        worked = judged(tmp_path, fake, waiting("1"))
    assert [reason for _, reason in worked.rejects] == [reason]
    assert len(fake.requests) == 1


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (401, None, r"refuses the key of OPENAI_API_KEY \(401\): as told"),
        (403, None, r"refuses the key of OPENAI_API_KEY \(403\): as told"),
        (404, None, r"has no model 'judge-1', or no completions at that address \(404\)"),
        (429, {"error": {"message": "pay", "code": "insufficient_quota"}}, "the account is used up: pay"),
    ],
)
def test_what_no_row_can_mend_ends_the_stage(tmp_path: Path, status: int, body: Any, message: str) -> None:
    with (
        serving(always(status=status, body=body)) as fake,
        pytest.raises(UserError, match=message),
    ):
        judged(tmp_path, fake, *map(waiting, "123456789"), server={"concurrency": 2, "max_retries": 0})
    assert len(fake.requests) <= 4


def test_an_unreachable_server_ends_the_stage(tmp_path: Path) -> None:
    with serving(always()) as fake:
        pass
    with pytest.raises(UserError, match=r"127.0.0.1:\d+/v1 cannot be reached, in 2 tries: .*Start the server"):
        judged(tmp_path, fake, waiting("1"), server={"max_retries": 1})


KEY = "sk-planted-9f8e7d6c5b4a"


def test_the_key_is_sent_and_never_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where a server echoes it, in a failure or in its answer to a failure of access."""
    monkeypatch.setenv("MY_KEY", KEY)
    server = {"api_key_variable": "MY_KEY", "max_retries": 0}
    echo = {"error": {"message": f"bad header: Bearer {KEY}"}}
    with serving(lambda request, number: Reply() if number == 1 else Reply(status=400, body=echo)) as fake:
        worked = judged(tmp_path, fake, *map(waiting, "12"), server=server | {"concurrency": 1})
    assert {headers["authorization"] for headers in fake.headers} == {f"Bearer {KEY}"}
    assert [reason for _, reason in worked.rejects] == ["the server refused with status 400: bad header: Bearer [key]"]
    assert KEY not in repr(worked)
    with serving(always(status=401, body=echo)) as fake, pytest.raises(UserError) as caught:
        judged(tmp_path / "other", fake, waiting("1"), server=server)
    assert KEY not in str(caught.value)
    assert caught.value.__cause__ is None
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or KEY.encode() not in path.read_bytes()


def test_a_key_from_a_file_may_end_in_a_newline_but_hold_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(always()) as fake:
        monkeypatch.setenv("OPENAI_API_KEY", f"{KEY}\n")
        judged(tmp_path, fake, waiting("1"))
        assert fake.headers[0]["authorization"] == f"Bearer {KEY}"
        for broken in (f"{KEY}\n{KEY}", f"{KEY}’"):
            monkeypatch.setenv("OPENAI_API_KEY", broken)
            with pytest.raises(UserError, match="OPENAI_API_KEY holds characters that no key has") as caught:
                judged(tmp_path, fake, waiting("2"))
            assert KEY not in str(caught.value)


def test_without_a_key_only_loopback_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with serving(always()) as fake:
        judged(tmp_path, fake, waiting("1"))
        assert fake.headers[0]["authorization"] == "Bearer no-key-needed"
    for base_url in ("https://api.openai.com/v1", "http://10.0.0.1:8000/v1", "http://localhost.example.com/v1"):
        with pytest.raises(UserError, match="environment variable OPENAI_API_KEY is not set"):
            ServerJudge(config(tmp_path, base_url))(table(waiting("2")), seed=0)


def test_openai_itself_knows_the_limit_by_another_name(tmp_path: Path) -> None:
    server = config(tmp_path, "https://api.openai.com/v1").server
    assert server is not None
    request = Conversation(server).chat_request([], 5)
    assert request["max_completion_tokens"] == 5
    assert "max_tokens" not in request


def test_the_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "openai", None)
    worker = ServerJudge(config(tmp_path, "http://127.0.0.1:1/v1"))
    assert worker(table(example("a", correct=True)), seed=0).table.num_rows == 1  # nothing to ask
    with pytest.raises(UserError, match=r"pip install 'nlft-ray\[server\]'"):
        worker(table(waiting("1")), seed=0)
