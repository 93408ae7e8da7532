"""Where the tests of `core` find data that is not part of the repository."""

import os
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of golden numbers and real data: beside the repository, or $NLFT_SHARED."""
    folder = Path(os.environ.get("NLFT_SHARED", Path(__file__).parents[3] / "shared"))
    if not folder.is_dir():
        pytest.skip(f"no shared data at {folder}; set NLFT_SHARED")
    return folder
