"""Scoring in a store survives what scoring on a disk survives, and a store that fails in the middle."""

import itertools
import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from nlft_ray.shards import plan_shards, work_shard
from nlft_ray.stages.score.worker import ScoreWorker
from nlft_ray.storage import Folder
from tests.stages.forced_failures import Running, Scoring, example_rows, nothing_left_behind
from tests.stores.server import DENIED, Fault, Request, Store, Weather
from tests.tables import write_table

ROWS, ROWS_PER_FILE = 96, 48
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


def scored_here(scoring: Scoring) -> None:
    """What nobody disturbs, without Ray."""
    config = scoring.config()
    source, output, worker = Folder(config.input), Folder(config.output), ScoreWorker(config)
    for shard in plan_shards(source, config.pool.rows_per_shard):
        work_shard(worker, source, output, shard, "score", seed=0)


@pytest.mark.usefixtures("one_thread")
def test_a_store_that_fails_and_a_killed_driver_cost_no_row(store: Store, tmp_path: Path) -> None:
    rows = example_rows(ROWS)
    here = Scoring(tmp_path, write_table(tmp_path / "examples", "examples", rows, ROWS_PER_FILE), tmp_path / "scored")
    scored_here(here)
    examples = write_table(store.uri("examples"), "examples", rows, ROWS_PER_FILE)
    scoring = Scoring(tmp_path, examples, store.uri("scored"))
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
        with scoring.start() as running:
            until_done(running, 6)
            running.kill_driver()
        seen |= scoring.files()
        finished = scoring.run()
    assert finished.returncode == 0, finished.text
    written = scoring.files()
    assert len(written) == SHARDS
    assert {name: written[name] for name in seen} == seen, "finished shards were done again"
    assert_same(store.downloaded("scored", tmp_path / "copy"), tmp_path / "scored")


def assert_same(there: Path, here: Path) -> None:
    """Every id exactly once, and every value equal, bit for bit."""
    found, wanted = (pq.read_table(folder / "data").sort_by("id") for folder in (there, here))
    assert found.equals(wanted)
    rejected, should = (pq.read_table(folder / "rejects").sort_by("id") for folder in (there, here))
    assert rejected.equals(should)
    ids = found["id"].to_pylist() + rejected["id"].to_pylist()
    assert sorted(ids) == sorted(row["id"] for row in example_rows(ROWS))
