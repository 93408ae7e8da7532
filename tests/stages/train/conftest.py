"""A model, a table, and a process group for training in this process."""

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist

from tests.stages.train import support, workers


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return support.save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def scored(tmp_path_factory: pytest.TempPathFactory, model: str) -> str:
    return support.save_scored(tmp_path_factory.mktemp("scored"), model)


@pytest.fixture(scope="session")
def process_group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A process group of this process alone, which DeepSpeed finds and uses."""
    if dist.is_initialized():
        yield
        return
    rendezvous = tmp_path_factory.mktemp("group") / "rendezvous"
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture(scope="session")
def two_workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[workers.Group]:
    """Two processes that form a group."""
    group = workers.Group(tmp_path_factory.mktemp("two"), 2)
    yield group
    group.close()


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Sums depend on the number of threads; so does the speed of a test among others."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
