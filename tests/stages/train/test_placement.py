"""How many workers of a size fit."""

from nlft_ray.stages.train.placement import largest_share, places

NODES = [{"CPU": 16.0, "GPU": 4.0}, {"CPU": 16.0, "GPU": 4.0}, {"CPU": 4.0}]


def test_workers_do_not_span_nodes() -> None:
    assert places(NODES, cpus=10, gpus=0) == 2
    assert places(NODES, cpus=1, gpus=1) == 8


def test_the_largest_share_lets_all_workers_start() -> None:
    assert largest_share(NODES, workers=3, gpus=0) == 8
    assert largest_share(NODES, workers=8, gpus=1) == 4
    assert largest_share(NODES, workers=100, gpus=0) == 1
    assert largest_share([], workers=1, gpus=0) == 1
