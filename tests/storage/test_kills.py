"""Scoring in a store survives what scoring on a disk survives, and a store that fails in the middle.

The ordinary run kills a driver. The failing store:

    pytest -m exhaustive tests/storage/test_kills.py
"""

import itertools
import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from nlft_ray.stages.score.job import score
from tests.rows import write_table
from tests.stages.forced_failures import Running, Scoring, example_rows, nothing_left_behind
from tests.storage.server import DENIED, Fault, Request, Store, Weather

pytestmark = pytest.mark.system

ROWS, ROWS_PER_FILE = 64, 32
SHARDS = ROWS // 8


def refusing_after(shards: int) -> Weather:
    """The keys are not valid any more once so many shards were written."""
    written = itertools.count()

    def weather(request: Request) -> Fault | None:
        is_shard = request.method == "PUT" and request.key.startswith("scored/data/")
        return DENIED if is_shard and next(written) >= shards else None

    return weather


def until_done(running: Running, shards: int) -> None:
    assert running.wait_until(lambda: running.done() >= shards), running.text


@pytest.fixture
def undisturbed(tmp_path: Path, one_thread: None) -> Path:
    rows = write_table(tmp_path / "examples", "examples", example_rows(ROWS), ROWS_PER_FILE)
    score(Scoring(tmp_path, rows, tmp_path / "scored").config("pool.backend=inline"))
    return tmp_path / "scored"


@pytest.fixture
def scoring(tmp_path: Path, store: Store) -> Scoring:
    """From a store to a store."""
    examples = write_table(store.uri("examples"), "examples", example_rows(ROWS), ROWS_PER_FILE)
    return Scoring(tmp_path, examples, store.uri("scored"))


def check_it_continues(scoring: Scoring, store: Store, undisturbed: Path, seen: dict[str, int]) -> None:
    finished = scoring.run()
    assert finished.returncode == 0, finished.text
    written = scoring.files()
    assert len(written) == SHARDS
    assert {name: written[name] for name in seen} == seen, "finished shards were done again"
    assert_same(store.downloaded("scored", undisturbed.parent / "copy"), undisturbed)


def test_a_killed_driver_costs_no_row(scoring: Scoring, store: Store, undisturbed: Path) -> None:
    with nothing_left_behind():
        with scoring.start() as running:
            until_done(running, 3)
            running.kill_driver()
        seen = scoring.files()
        assert 3 <= len(seen) < SHARDS
        check_it_continues(scoring, store, undisturbed, seen)


@pytest.mark.exhaustive
def test_a_store_that_fails_in_the_middle_is_one_line_and_costs_no_row(
    scoring: Scoring, store: Store, undisturbed: Path
) -> None:
    with nothing_left_behind():
        store.proxy.weather = refusing_after(3)
        failed = scoring.run()
        assert failed.returncode == 2
        assert "Traceback" not in failed.text
        said = (
            r"nlft-ray: s3://bucket/scored/data/part-\d+\.parquet: the store refuses these credentials.*AWS_ACCESS_KEY"
        )
        assert re.search(said, failed.text), failed.text
        store.proxy.begin_anew()
        seen = scoring.files()
        assert len(seen) == 3
        check_it_continues(scoring, store, undisturbed, seen)


def assert_same(there: Path, here: Path) -> None:
    """Every id exactly once, and every value equal, bit for bit."""
    found, wanted = (pq.read_table(folder / "data").sort_by("id") for folder in (there, here))
    assert found.equals(wanted)
    rejected, should = (pq.read_table(folder / "rejects").sort_by("id") for folder in (there, here))
    assert rejected.equals(should)
    ids = found["id"].to_pylist() + rejected["id"].to_pylist()
    assert sorted(ids) == sorted(row["id"] for row in example_rows(ROWS))
