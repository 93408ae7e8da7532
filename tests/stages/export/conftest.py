"""The model, table and process group of the training tests."""

from tests.stages.train.conftest import model, one_thread, process_group, scored

__all__ = ["model", "one_thread", "process_group", "scored"]
