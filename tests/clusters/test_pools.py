"""Two pools on a cluster of several nodes: work is where it should be, and nodes may die or join.

Where actors ran is read from the cluster's own records, not from the configuration.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.clusters.pools import SCORING_ACTOR, TRAINING_WORKER, Pools
from tests.rows import read_table, write_table
from tests.stages.forced_failures import SHARDS, Scoring, assert_same, example_rows, write_examples
from tests.stages.train import support, workers
from tests.stages.train.test_kills import Training, weights_in
from tests.stages.train.test_kills import assert_same as assert_same_weights

pytestmark = pytest.mark.system

SCORE_POOL, TRAIN_POOL = "pool.label_selector.pool=score", "label_selector.pool=train"


@pytest.fixture(scope="module")
def pools() -> Iterator[Pools]:
    made = Pools()
    try:
        made.add("score-1", "score")
        made.add("score-2", "score")
        made.add("train-1", "train", cpus=2)
        yield made
    finally:
        made.shut_down()


def test_work_is_in_its_pool_and_who_has_none_left_leaves(tmp_path: Path, pools: Pools) -> None:
    """The first shard takes much longer than the others."""
    rows = [row | {"response_ids": None} for row in example_rows(430)]
    examples = write_table(tmp_path / "examples", "examples", rows, rows_per_file=400)
    scoring = Scoring(tmp_path, examples, tmp_path / "scored")
    alive, earlier = [0], pools.actors(SCORING_ACTOR)
    with scoring.start(f"ray_address={pools.address}", SCORE_POOL, "pool.rows_per_shard=400") as running:
        while not pools.alive(SCORING_ACTOR) and running.returncode is None:
            time.sleep(0.05)
        with pools.held_still(["score-1", "score-2"], SCORING_ACTOR):  # on a busy machine the second one comes late
            while alive[-1] < 2 and running.returncode is None:
                alive.append(pools.alive(SCORING_ACTOR))
                time.sleep(0.05)
        while len(scoring.files()) < 2 and running.returncode is None:
            alive.append(pools.alive(SCORING_ACTOR))
            time.sleep(0.1)
        running.wait()
    assert running.returncode == 0, running.text
    assert set(read_table(scoring.output)) == {row["id"] for row in rows}
    assert pools.nodes_of(SCORING_ACTOR, earlier) == {"score-1", "score-2"}
    assert max(alive) == 2, "as many as find room in the pool, which is less than in the cluster"
    assert alive[-1] == 1, "the pool's minimum"

    words = ["--config", scoring.words[1], f"input={scoring.output}", f"output={tmp_path / 'trained'}"]
    words += [f"ray_address={pools.address}", TRAIN_POOL, "num_workers=2", "max_steps=2", "lora=null"]
    with Training(words, tmp_path / "trained") as running:
        running.wait()
    assert running.returncode == 0, running.text
    assert {line["workers"] for line in support.record(tmp_path / "trained")} == {2}
    assert len(pools.actors(TRAINING_WORKER)) == 2
    assert pools.nodes_of(TRAINING_WORKER, set()) == {"train-1"}


def test_a_command_that_names_no_cluster_starts_its_own(pools: Pools) -> None:
    """Ray by itself would take the one that it finds on the machine."""
    code = "import ray; from nlft_ray.execution.ray_cluster import connect; connect(None); print(len(ray.nodes()))"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert found.stdout.split()[-1] == "1"


def test_a_scoring_node_that_joins_is_used_and_one_that_dies_costs_its_work_in_flight(
    tmp_path: Path, pools: Pools
) -> None:
    examples, address = write_examples(tmp_path), f"ray_address={pools.address}"
    undisturbed = Scoring(tmp_path, examples, tmp_path / "undisturbed")
    with undisturbed.start(address, SCORE_POOL) as running:
        running.wait()
    assert running.returncode == 0, running.text

    scoring, earlier = Scoring(tmp_path, examples, tmp_path / "scored"), pools.actors(SCORING_ACTOR)
    with scoring.start(address, SCORE_POOL) as running:
        assert running.wait_until(lambda: len(pools.nodes_of(SCORING_ACTOR, earlier)) == 2 and running.done() >= 4)
        with pools.held_still(["score-1", "score-2"], SCORING_ACTOR):
            time.sleep(0.5)
            before = running.done()
            pools.add("score-3", "score")
            assert running.wait_until(lambda: running.done() >= before + 2), "the node that joined works"
            pools.kill("score-2")
        seen = scoring.files()
        running.wait()
    assert running.returncode == 0, running.text
    assert len(seen) < SHARDS - 2
    assert pools.nodes_of(SCORING_ACTOR, earlier) == {"score-1", "score-3"}, "what died was replaced there"
    assert_same(scoring.output, undisturbed.output)
    written = scoring.files()
    assert {name: written[name] for name in seen} == seen, "finished shards were done again"


def test_training_goes_on_from_its_checkpoint_on_another_node(tmp_path: Path, pools: Pools) -> None:
    settings: dict[str, Any] = {
        "num_workers": 2,
        "zero_stage": 2,
        "batch_size": 2,
        "epochs": 10,
        "checkpoint_every_steps": 5,
        "lora": {"dropout": 0.2},
        "label_selector": {"pool": "gang"},
    }
    model = support.save_model(tmp_path / "model")
    scored, output = support.save_scored(tmp_path / "scored", model), tmp_path / "trained"
    config = support.train_config(model, scored, output, **settings)
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json", exclude_defaults=True)))
    pools.add("gang-1", "gang", cpus=2)
    earlier = pools.actors(TRAINING_WORKER)
    with Training(["--config", str(tmp_path / "train.yaml"), f"ray_address={pools.address}"], output) as running:
        assert running.wait_until(lambda: running.done() >= 18)
        assert pools.nodes_of(TRAINING_WORKER, earlier) == {"gang-1"}
        pools.kill("gang-1")
        before = support.record(output)
        pools.add("gang-2", "gang", cpus=2)
        running.wait()
    assert running.returncode == 0, running.text
    assert "goes on" in running.text or "going on from the newest checkpoint" in running.text
    assert pools.nodes_of(TRAINING_WORKER, earlier) == {"gang-1", "gang-2"}
    after = support.record(output)
    assert [line["step"] for line in after] == list(range(1, 61))
    assert after[:15] == before[:15], "kept, not taken again"

    undisturbed = support.train_config(model, scored, tmp_path / "whole", **settings)
    group = workers.Group(tmp_path, 2)
    try:
        group.do(workers.train_in, undisturbed, tmp_path / "checkpoints")
    finally:
        group.close()
    assert_same_weights(weights_in(output), weights_in(tmp_path / "whole"))
