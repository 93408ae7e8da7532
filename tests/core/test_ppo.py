"""ReFT's arithmetic, on numbers worked out by hand."""

import math

import pytest
import torch
from torch import Tensor

from nlft_ray.core.ppo import (
    generalised_advantages,
    mean_of_responses,
    policy_loss,
    reward_of,
    token_rewards,
    value_loss,
    whitened,
)

MASK = torch.tensor([[True, True, True], [True, True, False]])


def tensor(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def test_rewards_of_responses() -> None:
    assert reward_of("correct", readable=True) == 1
    assert reward_of("incorrect", readable=True) == 0.1
    assert reward_of("incorrect", readable=False) == 0


def test_the_reward_stands_at_the_last_token_and_distance_at_all() -> None:
    found = token_rewards(
        torch.tensor([1.0, 0.1]), tensor([-1, -2, -3], [-1, -2, 9]), tensor([-1.5, -2, -2], [-1, -1, 5]), MASK, 0.1
    )
    torch.testing.assert_close(found, tensor([-0.05, 0, 1.1], [0, 0.2, 0]))


def test_advantages_by_hand() -> None:
    """γ = 1, λ = 0.5. First row, from the end: δ = 1 − 0.4, 0.4 − 0.2, 0.2 − 0.1; A = 0.6, 0.2 + 0.3, 0.1 + 0.25."""
    rewards, values = tensor([0, 0, 1], [0, 0.5, 7]), tensor([0.1, 0.2, 0.4], [0.3, 0.1, 9])
    advantages, returns = generalised_advantages(rewards, values, MASK, decay=0.5)
    torch.testing.assert_close(advantages, tensor([0.35, 0.5, 0.6], [0.0, 0.4, 0]))
    torch.testing.assert_close(returns, tensor([0.45, 0.7, 1.0], [0.3, 0.5, 0]))


def test_with_full_decay_a_return_is_the_sum_of_the_rewards_to_come() -> None:
    rewards, values = torch.randn(2, 3, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)
    _, returns = generalised_advantages(rewards, values, MASK, decay=1.0)
    torch.testing.assert_close(returns[0], rewards[0].flip(0).cumsum(0).flip(0))
    torch.testing.assert_close(returns[1, :2], torch.stack([rewards[1, 0] + rewards[1, 1], rewards[1, 1]]))


def test_whitening_looks_at_tokens_that_are_there() -> None:
    found = whitened(tensor([1, 2, 3], [4, 5, 99]), MASK)
    torch.testing.assert_close(found[MASK], (torch.arange(1, 6).double() - 3) / math.sqrt(2), atol=1e-6, rtol=0)
    assert found[1, 2] == 0


@pytest.mark.parametrize(
    ("advantage", "ratio", "loss"),
    [(1, 1.1, -1.1), (1, 1.5, -1.2), (1, 0.5, -0.5), (-1, 1.5, 1.5), (-1, 0.5, 0.8), (-1, 0.9, 0.9)],
)
def test_the_clipped_ratio(advantage: float, ratio: float, loss: float) -> None:
    there = torch.tensor([[True]])
    found = policy_loss(tensor([math.log(ratio)]), tensor([0]), tensor([advantage]), there)
    assert found.item() == pytest.approx(loss)


@pytest.mark.parametrize(
    ("value", "loss"),
    [(0.1, (1 - 0.1) ** 2 / 2), (0.9, (1 - 0.2) ** 2 / 2), (-0.9, (1 + 0.9) ** 2 / 2)],
    ids=["near", "clipped on the way to the return", "away from it"],
)
def test_the_clipped_value(value: float, loss: float) -> None:
    """Old value 0, return 1, clip 0.2."""
    found = value_loss(tensor([value]), tensor([0]), tensor([1]), torch.tensor([[True]]))
    assert found.item() == pytest.approx(loss)


def test_responses_count_alike_however_long() -> None:
    assert mean_of_responses(tensor([3, 3, 3], [1, 2, 50]), MASK).item() == pytest.approx((3 + 1.5) / 2)
