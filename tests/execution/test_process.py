"""How our own processes start: what is set for the start alone is set back."""

import gc
import os
from pathlib import Path

import pytest
import torch

from nlft_ray.errors import UserError
from nlft_ray.execution import process


def test_the_collector_is_rare_while_a_process_starts_and_then_as_before() -> None:
    before = gc.get_threshold()
    with process.starting():
        assert gc.get_threshold()[0] > before[0]
    assert gc.get_threshold() == before


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        ({"cpu.max": "150000 100000"}, 2),
        ({"cpu.max": "max 100000"}, os.cpu_count()),
        ({"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"}, 3),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, os.cpu_count()),
        ({}, os.cpu_count()),
    ],
    ids=["a quota", "none", "a quota of version 1", "none of version 1", "no group"],
)
def test_the_cpus_of_a_control_group(files: dict[str, str], cpus: int, tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"{text}\n")
    assert process._cgroup_cpus(tmp_path) == cpus


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity")
def test_affinity_is_heeded() -> None:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert process.usable_cpus() == 1
    finally:
        os.sched_setaffinity(0, before)


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch can use a GPU here")
def test_a_gpu_that_torch_cannot_use_is_an_error() -> None:
    with pytest.raises(UserError, match=r"pool.gpus_per_worker: Ray gave this worker a GPU that torch .* cannot use"):
        process.check_gpus("pool.gpus_per_worker")


@pytest.mark.parametrize("name", ["PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF"])
def test_the_users_settings_of_torchs_allocator_stay(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {name: "max_split_size_mb:128"})
    with process.starting():
        pass
    assert {key: value for key, value in os.environ.items() if "ALLOC" in key} == {name: "max_split_size_mb:128"}


def test_torchs_allocator_grows_its_segments_where_the_user_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {})
    with process.starting():
        pass
    assert os.environ["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"
