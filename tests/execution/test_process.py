"""How our own processes start: what is set for the start alone is set back."""

import gc

from nlft_ray.execution import process


def test_the_collector_is_rare_while_a_process_starts_and_then_as_before() -> None:
    before = gc.get_threshold()
    with process.starting():
        assert gc.get_threshold()[0] > before[0]
    assert gc.get_threshold() == before
