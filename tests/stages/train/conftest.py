"""A model, a table, and a process group for training in this process."""

from collections.abc import Iterator

import pytest
import torch.distributed as dist

from tests.stages.train import support


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return support.save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def scored(tmp_path_factory: pytest.TempPathFactory, model: str) -> str:
    return support.save_scored(tmp_path_factory.mktemp("scored"), model)


@pytest.fixture(scope="session")
def process_group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A process group of this process alone, which DeepSpeed finds and uses."""
    rendezvous = tmp_path_factory.mktemp("group") / "rendezvous"
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()
