"""Finished batches in a store: few requests, one message for a refusal, no waiting."""

import time
from typing import Any

import pytest

from nlft_ray.errors import UserError
from nlft_ray.execution.work import isolate_failures
from nlft_ray.stages.score.contexts import ScoringRow
from nlft_ray.stages.score.finished_batches import SECONDS_BETWEEN_WRITES, FinishedBatches
from nlft_ray.stages.score.scorer import ScoringBatch
from nlft_ray.storage.folder import Folder
from nlft_ray.tables.schema import SCORED
from tests.stages.test_finished_batches import Scoring, shard
from tests.storage.server import DENIED, Fault, Store


def requests_of_a_shard(store: Store, batches: int) -> int:
    """From its first batch to the removal of what was written, with a write, a kill and a continuation."""
    ids = [str(number) for number in range(batches)]
    made = [ScoringBatch([ScoringRow(id, "correct", {}, [], None)], {}, []) for id in ids]
    folder = Folder(store.uri("run/unfinished"))
    store.proxy.begin_anew()
    killed, again = FinishedBatches(folder, 0.0), FinishedBatches(folder, 0.0)
    killed.begin(ids)
    for batch in made:
        killed.add(batch, SCORED.empty_table())
    killed.write_when_due()
    killed.wait()
    assert len(store.objects()) == 1
    again.begin(ids)
    assert all(again.get(batch) is not None for batch in made)
    again.begin(["of the next shard"])
    assert store.objects() == {}
    return store.proxy.answered


def test_requests_do_not_grow_with_the_batches(store: Store) -> None:
    assert requests_of_a_shard(store, 3) == requests_of_a_shard(store, 300) < 20


def test_a_shard_that_is_done_soon_costs_a_look(random_llama: str, store: Store) -> None:
    for rows in (2, 12):
        scoring = Scoring(random_llama, store.uri("run"), seconds=SECONDS_BETWEEN_WRITES)
        store.proxy.begin_anew()
        scoring.worker(shard(0, rows), 0)
        assert len(scoring.batches) == rows
        assert store.proxy.answered <= 2
    assert store.objects() == {}


def test_a_store_that_refuses_is_a_message(random_llama: str, store: Store) -> None:
    store.proxy.weather = lambda request: DENIED if request.method == "PUT" else None
    scoring = Scoring(random_llama, store.uri("run"))
    with pytest.raises(UserError, match="the store refuses these credentials"):
        isolate_failures(scoring.worker, shard(0), 0)


def test_scoring_goes_on_while_a_store_is_slow(random_llama: str, store: Store) -> None:
    scoring = Scoring(random_llama, store.uri("run"), seconds=1e-9)
    score = scoring.worker._scorer.launch
    scored_at: list[float] = []

    def timed(batch: ScoringBatch) -> Any:
        facts = score(batch)
        scored_at.append(time.monotonic())
        return facts

    scoring.worker._scorer.launch = timed  # type: ignore[method-assign]
    store.proxy.weather = lambda request: Fault(seconds=3) if request.method == "PUT" else None
    scoring.worker(shard(0), 0)
    assert scored_at[-1] - scored_at[0] < 2, "all batches were scored while the first file was under way"
    assert time.monotonic() - scored_at[0] > 2.5, "and the shard ends when it is written"
