"""Which nodes belong to a pool, and how many workers of a size fit on them."""

import pytest

from nlft_ray.execution.placement import carries, largest_share, places

NODES = [{"CPU": 16.0, "GPU": 4.0}, {"CPU": 16.0, "GPU": 4.0}, {"CPU": 4.0}]


def test_workers_do_not_span_nodes() -> None:
    assert places(NODES, cpus=10, gpus=0) == 2
    assert places(NODES, cpus=1, gpus=1) == 8
    assert places(NODES, cpus=1, gpus=0.5) == 16


def test_the_largest_share_lets_all_workers_start() -> None:
    assert largest_share(NODES, workers=3, gpus=0) == 8
    assert largest_share(NODES, workers=8, gpus=1) == 4
    assert largest_share(NODES, workers=100, gpus=0) == 1
    assert largest_share([], workers=1, gpus=0) == 1


@pytest.mark.parametrize(
    ("wanted", "pools"),
    [
        ("score", {"score"}),
        ("!score", {"train", None}),
        ("in(score, train)", {"score", "train"}),
        ("!in(score,train)", {None}),
    ],
)
def test_a_selector_picks_the_nodes_that_ray_would_pick(wanted: str, pools: set[str | None]) -> None:
    labels = {pool: {"pool": pool} if pool else {} for pool in ("score", "train", None)}
    assert {pool for pool, of_node in labels.items() if carries(of_node, {"pool": wanted})} == pools
    assert carries({"pool": "score", "zone": "a"}, {})
    assert not carries({"pool": "score"}, {"pool": "score", "zone": "a"})
