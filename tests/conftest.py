"""Fixtures for all tests: real data and models where they are at hand, one Ray cluster, tables to start from."""

import os
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from tests.small_run import SmallRun

settings.register_profile("project", deadline=None)  # a busy machine is no bug
settings.load_profile("project")

ROOT = Path(__file__).parents[1]
TIERS = ("unit", "ray", "browser", "system", "slow", "exhaustive")
"""Markers of which every test has one; pyproject.toml says what each means."""
_PROCESSES_OF_THEIR_OWN = {"two_workers", "transformers_server", "server"}
"""Fixtures that start processes."""


@pytest.hookimpl(tryfirst=True)  # before pytest selects by marker
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give every test that declares no tier the one that follows from its fixtures."""
    for item in items:
        if not any(item.get_closest_marker(tier) for tier in TIERS):
            item.add_marker(_tier_of(set(getattr(item, "fixturenames", ()))))


def _tier_of(fixtures: set[str]) -> str:
    if "browser" in fixtures:
        return "browser"
    if fixtures & _PROCESSES_OF_THEIR_OWN:
        return "system"
    return "ray" if "ray_local" in fixtures else "unit"


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs a GPU where there is none, and say so."""
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("torch sees no GPU here")


_SECONDS_OF_TIER: defaultdict[str, float] = defaultdict(float)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Add up the seconds of each tier, fixtures included."""
    for tier in TIERS:
        if tier in report.keywords:
            _SECONDS_OF_TIER[tier] += report.duration
            break


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.section("seconds of each tier")
    for tier, seconds in _SECONDS_OF_TIER.items():
        terminalreporter.write_line(f"{tier:<10} {seconds:6.0f}")


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real data sets and models, which are not part of the project."""
    folder = Path(os.environ.get("NLFT_SHARED", ROOT.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"no real data and models at {folder} (set NLFT_SHARED)")
    return folder


@pytest.fixture(scope="session")
def tinystories(shared: Path) -> Path:
    """A real Llama of 656 k parameters with grouped-query attention and no chat template."""
    return shared / "models" / "tinystories-656k"


@pytest.fixture(scope="session")
def ray_local() -> Iterator[None]:
    """One local Ray cluster for all tests that need one."""
    from nlft_ray.execution import ray_cluster

    # As in an activated environment: a submitted job's `python` is looked up by the cluster's processes.
    os.environ["PATH"] = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])
    ray_cluster.connect(None)
    yield
    import ray

    ray.shutdown()


@pytest.fixture(scope="session")
def random_llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a tiny Llama with random weights."""
    from tests.random_models import save_random_model

    return save_random_model(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> "SmallRun":
    """The chain on the sandbox, run once."""
    from tests.small_run import finish_small_run

    return finish_small_run(tmp_path_factory.mktemp("small-run"))
