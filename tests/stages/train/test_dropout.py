"""Masks follow from the text, the step and the seed."""

from typing import Any

import pytest
import torch
from torch import Tensor

from nlft_ray.stages.train.examples import packed_inputs
from nlft_ray.stages.train.model import KeyedDropout, TokenKeys

ROWS = [[*range(20), 3, 1, 4], [*range(20), 2], [*range(20), 3, 1, 5, 9]]
D = 64


def mask(inputs: dict[str, Any], *, seed: int = 0, step: int = 0, layer: int = 0, probability: float = 0.25) -> Tensor:
    keys = TokenKeys()
    keys.set(inputs, seed, step)
    return KeyedDropout(probability, layer, keys)(torch.ones(*inputs["input_ids"].shape, D))


def alone(row: list[int], **named: Any) -> Tensor:
    return mask({"input_ids": torch.tensor([row])}, **named)[0]


@pytest.mark.parametrize("shared", [0, 17, 20])
def test_a_row_has_its_masks_wherever_it_stands(shared: int) -> None:
    inputs, starts = packed_inputs(ROWS, shared)
    packed = mask(inputs)[0]
    for row, start in zip(ROWS, starts, strict=True):
        own = alone(row)
        assert torch.equal(packed[start + shared : start + len(row)], own[shared:])
        assert torch.equal(packed[:shared], own[:shared])
    padded = mask({"input_ids": torch.tensor([[*row, *[0] * (30 - len(row))] for row in ROWS])})
    for row, found in zip(ROWS, padded, strict=True):
        assert torch.equal(found[: len(row)], alone(row))


def test_every_other_circumstance_changes_them() -> None:
    first = alone(ROWS[0])
    others = [alone(ROWS[0], seed=1), alone(ROWS[0], step=1), alone(ROWS[0], layer=1), alone([7, *ROWS[0][1:]])]
    for other in others:
        assert 0.2 < (first != other).float().mean() < 0.6  # 2 · 0.25 · 0.75, by chance
    assert not torch.equal(first[0], first[1])


@pytest.mark.parametrize("probability", [0.05, 0.5, 0.9])
def test_as_much_is_dropped_as_was_asked_for_and_the_mean_stays(probability: float) -> None:
    found = alone([number % 97 for number in range(2000)], probability=probability)
    assert (found == 0).float().mean().item() == pytest.approx(probability, abs=0.01)
    assert found.mean().item() == pytest.approx(1, abs=0.03)
    # neither a token's mask nor a place's follows from another's
    kept = (found > 0).float() - (1 - probability)
    for neighbours in (kept[:-1] * kept[1:], kept[:, :-1] * kept[:, 1:]):
        assert abs(neighbours.mean()) < 0.005


def test_nothing_is_dropped_outside_training() -> None:
    dropout = KeyedDropout(0.5, 0, TokenKeys()).eval()
    assert torch.equal(dropout(torch.ones(1, 3, D)), torch.ones(1, 3, D))
