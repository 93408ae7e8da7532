"""The stage as a whole: by the target model, and by `transformers serve` on loopback."""

import json
from pathlib import Path
from typing import Any

import pytest

from nlft_ray.config import JudgeConfig
from nlft_ray.errors import UserError
from nlft_ray.stages.judge.job import judge
from nlft_ray.tables.manifest import StageResult
from tests.rows import example, read_rejects, read_table, write_table
from tests.stages.judge.conftest import Served
from tests.stages.judge.fake_server import Reply, serving


def response(number: int) -> dict[str, Any]:
    """Every third one is correct; the others wait for their judgment."""
    correct = number % 3 == 0
    text = f"2 + 2 is it, because of {number}. #### {4 if correct else 5}"
    return example(str(number), correct=correct, judgment=None, response=text)


ROWS = [response(number) for number in range(24)]
INCORRECT = {row["id"] for row in ROWS if row["verdict"] == "incorrect"}


POOL = {"rows_per_shard": 8, "max_workers": 1}


def run(folder: Path, model: Path, output: str = "out", **options: Any) -> StageResult:
    told = {
        "input": write_table(folder / "responses", "responses", ROWS),
        "output": str(folder / output),
        "model": {"path": str(model)},
        "max_new_tokens": 8,
        "pool": POOL | {"backend": "inline"},
    }
    return judge(JudgeConfig.model_validate(told | options))


def everything_under(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


@pytest.mark.usefixtures("ray_local")
def test_the_target_model_judges_itself_on_ray(tmp_path: Path, tinystories: Path) -> None:
    result = run(tmp_path, tinystories, pool=POOL)
    manifest, table = result.manifest, read_table(tmp_path / "out")
    assert manifest.identity.table == "examples"
    assert manifest.identity.prompts
    assert (manifest.rows_in, manifest.rows_out, manifest.counts["judged"]) == (24, 24, 16)
    assert {id for id, row in table.items() if row["judgment"]} == INCORRECT
    assert run(tmp_path, tinystories).reused


@pytest.mark.usefixtures("ray_local")
def test_a_real_server_judges_once_and_the_cache_ever_after(
    tmp_path: Path, tinystories: Path, transformers_server: Served
) -> None:
    server = {"base_url": transformers_server.base_url, "model": transformers_server.model, "max_retries": 1}
    first = run(tmp_path, tinystories, server=server, pool=POOL).manifest
    assert first.counts == {
        "incorrect": 16,
        "judged": 16,
        "judgments_cut_short": 16,
        "requests": 16,
        "cache_hits": 0,
    }
    assert first.tokens > 16 * 8
    table = read_table(tmp_path / "out")
    assert {id for id, row in table.items() if row["judgment"]} == INCORRECT
    assert len(list((tmp_path / "judgment_cache").rglob("*.json"))) == 16

    transformers_server.stop()
    server["concurrency"] = 1
    assert run(tmp_path, tinystories, server=server).reused  # how fast is no part of what
    again = run(tmp_path, tinystories, "again", server=server, pool=POOL).manifest
    assert (again.counts["requests"], again.counts["cache_hits"], again.tokens) == (0, 16, 0)
    assert read_table(tmp_path / "again") == table
    server["cache"] = str(tmp_path / "empty")
    with pytest.raises(UserError, match="cannot be reached, in 2 tries"):
        run(tmp_path, tinystories, "unreachable", server=server)


def test_disputed_rows_do_not_count_as_failures(tmp_path: Path, tinystories: Path) -> None:
    manifest = run(tmp_path, tinystories, disputed_pattern="^", max_reject_fraction=0).manifest
    assert (manifest.rows_out, manifest.rows_rejected, manifest.rows_set_aside) == (8, 0, 16)
    assert manifest.set_aside_reasons == {"disputed": 16}
    assert manifest.counts["disputed"] == 16
    rejects = read_rejects(tmp_path / "out")
    assert {reject["id"] for reject in rejects} == INCORRECT
    assert {reject["reason"] for reject in rejects} == {"disputed: the judge says that the response is right"}
    assert all(json.loads(reject["row"])["judgment"] for reject in rejects)


def test_what_was_judged_before_an_outage_is_kept(tmp_path: Path, tinystories: Path) -> None:
    """Shards of 5, 6 and 5 requests; the second is refused, and the next start asks for what is not there yet."""

    def refuse_later(request: dict[str, Any], number: int) -> Reply:
        return Reply(status=401) if number > 5 else Reply()

    with serving(refuse_later) as fake:
        server = {"base_url": fake.base_url, "model": "judge-1", "concurrency": 1}  # none on its way at the outage
        with pytest.raises(UserError, match=r"refuses the key of OPENAI_API_KEY \(401\)"):
            run(tmp_path, tinystories, server=server)
        before, fake.behave = len(fake.requests), lambda request, number: Reply()
        manifest = run(tmp_path, tinystories, server=server).manifest
        assert len(fake.requests) - before == 11
    assert (manifest.counts["judged"], manifest.counts["requests"]) == (16, 16)


def test_too_many_failures_are_an_error_with_their_reason(tmp_path: Path, tinystories: Path) -> None:
    with serving(lambda request, number: Reply(status=503)) as fake:
        server = {"base_url": fake.base_url, "model": "judge-1", "max_retries": 1}
        with pytest.raises(UserError, match=r"(?s)16 of 24 rows.*16 × the server failed with status 503"):
            run(tmp_path, tinystories, server=server)


def test_the_key_is_written_nowhere(
    tmp_path: Path, tinystories: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    key = "sk-planted-0a1b2c3d4e5f"
    monkeypatch.setenv("MY_KEY", key)
    with serving(lambda request, number: Reply(status=400) if number == 1 else Reply()) as fake:
        server = {"base_url": fake.base_url, "model": "judge-1", "api_key_variable": "MY_KEY"}
        manifest = run(tmp_path, tinystories, server=server, max_reject_fraction=0.5).manifest
        assert fake.headers[0]["authorization"] == f"Bearer {key}"
    assert (manifest.rows_out, manifest.rows_rejected) == (23, 1)
    assert key.encode() not in everything_under(tmp_path)
    shown = capfd.readouterr()
    assert key not in shown.out + shown.err
