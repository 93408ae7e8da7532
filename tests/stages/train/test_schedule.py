"""What a step works on, who works on it, and its learning rate. Every example comes once in every epoch."""

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nlft_ray.stages.train.schedule import Order, Split, learning_rate


def rates(steps: int = 10, **changes: Any) -> list[float]:
    settings: dict[str, Any] = {"highest": 1.0, "schedule": "cosine", "warmup_fraction": 0.2} | changes
    return [learning_rate(step, steps=steps, **settings) for step in range(steps)]


def test_cosine_by_hand() -> None:
    values = rates()
    assert values[:3] == pytest.approx([1 / 3, 2 / 3, 1])
    assert values[6] == pytest.approx(0.5)  # half way down
    assert values[9] == pytest.approx(0.0380602337)


def test_linear_by_hand() -> None:
    assert rates(schedule="linear")[2:] == pytest.approx([1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8])


def test_constant_stays_after_the_warmup() -> None:
    assert rates(schedule="constant") == pytest.approx([1 / 3, 2 / 3] + [1] * 8)


@given(
    steps=st.integers(1, 200),
    schedule=st.sampled_from(["cosine", "linear", "constant"]),
    warmup_fraction=st.floats(0, 1),
)
def test_no_step_is_wasted_and_none_exceeds_the_highest(steps: int, schedule: str, warmup_fraction: float) -> None:
    values = rates(steps, schedule=schedule, warmup_fraction=warmup_fraction)
    assert all(0 < value <= 1 for value in values)


sizes = st.integers(1, 9)


@given(examples=st.integers(1, 40), batch_size=sizes, epochs=st.integers(1, 3), workers=sizes, micro=sizes)
def test_every_example_is_worked_on_once_in_every_epoch(
    examples: int, batch_size: int, epochs: int, workers: int, micro: int
) -> None:
    order, split = Order(examples, batch_size, epochs, seed=3), Split(workers, micro, min(batch_size, examples))
    seen: Counter[tuple[int, int]] = Counter()
    for step in range(order.steps):
        shares = [split.micro_batches(order.batch(step), worker) for worker in range(workers)]
        assert all(len(share) == split.micro_steps for share in shares)
        assert all(len(slots) == micro for share in shares for slots in share)
        dealt = [index for share in shares for slots in share for index in slots if index is not None]
        assert sorted(dealt) == sorted(order.batch(step))
        seen.update((order.epoch(step), index) for index in dealt)
    assert seen == Counter({(epoch, index): 1 for epoch in range(epochs) for index in range(examples)})


@given(examples=st.integers(1, 40), batch_size=sizes, epochs=st.integers(1, 3))
def test_an_epoch_ends_with_its_last_step(examples: int, batch_size: int, epochs: int) -> None:
    order = Order(examples, batch_size, epochs, seed=0)
    ends = [step for step in range(order.steps) if order.ends_epoch(step)]
    assert len(ends) == epochs
    assert ends[-1] == order.steps - 1


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    def epoch(seed: int, number: int) -> list[int]:
        return Order(50, 50, 2, seed).batch(number)

    assert epoch(0, 0) == epoch(0, 0)
    assert epoch(0, 0) != epoch(0, 1)
    assert epoch(0, 0) != epoch(1, 0)


def test_the_number_of_workers_does_not_change_what_a_step_holds() -> None:
    batch = Order(20, 7, 1, 0).batch(1)
    for workers in (1, 2, 3):
        split = Split(workers, 2, 7)
        dealt = [split.micro_batches(batch, worker) for worker in range(workers)]
        assert sorted(i for share in dealt for slots in share for i in slots if i is not None) == sorted(batch)


def test_max_steps_stops_earlier_and_changes_no_step() -> None:
    whole, cut = Order(10, 4, epochs=3, seed=1), Order(10, 4, epochs=3, seed=1, max_steps=5)
    assert (whole.steps, cut.steps) == (9, 5)
    assert [cut.batch(step) for step in range(5)] == [whole.batch(step) for step in range(5)]
    assert Order(10, 4, epochs=1, seed=1, max_steps=50).steps == 3
