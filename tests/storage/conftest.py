"""A store for each test: its address and keys are in the environment, for there is no other place for them."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from nlft_ray.models import copies
from tests.stages.train.conftest import model, one_thread, process_group, scored
from tests.storage.server import ENVIRONMENT, Store, running_store

__all__ = ["model", "one_thread", "process_group", "scored"]


@pytest.fixture(scope="session")
def server() -> Iterator[Store]:
    with running_store() as store:
        yield store


@pytest.fixture
def store(server: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Store]:
    """An empty bucket in fair weather."""
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.proxy.endpoint)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "huggingface"))  # for other processes
    monkeypatch.setattr(copies, "COPIES", tmp_path / "copies")
    server.begin_anew()
    yield server
    server.begin_anew()
