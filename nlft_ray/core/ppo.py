"""Proximal policy optimisation on a verifier's reward, as ReFT does it (arXiv 2401.08967): the arithmetic alone.

Responses of a batch are the rows of (B, n) tensors, with a mask of the tokens that are there; a row has at least one.
The numbers are those of the authors' code, lqtrung1998/mwp_ReFT, train_rl_reft.py.
"""

from typing import Literal

import torch
from torch import Tensor

RIGHT, READABLE, UNREADABLE = 1.0, 0.1, 0.0
"""The reward of a right answer, of a wrong one that can be read, and of a response without an answer."""


def token_rewards(rewards: Tensor, logp: Tensor, logp_reference: Tensor, mask: Tensor, kl_weight: float) -> Tensor:
    """(B, n) the reward of each token: the response's at its last, less the distance from the reference at all.

    The distance is estimated by log π − log π_reference of the sampled token, under the policy that sampled it.

    Args:
        rewards: (B,) of each response.
        logp: (B, n) log-probabilities under the policy that sampled.
        logp_reference: (B, n) those under the model before.
        mask: (B, n) bool, which tokens are there.
        kl_weight: β, 0.05 for answers in words.
    """
    per_token = -kl_weight * (logp - logp_reference) * mask
    last = mask.sum(1, keepdim=True) - 1
    return per_token.scatter_add(1, last, rewards[:, None].to(per_token.dtype))


def generalised_advantages(
    rewards: Tensor, values: Tensor, mask: Tensor, *, discount: float = 1.0, decay: float = 0.95
) -> tuple[Tensor, Tensor]:
    """(B, n) advantages, and returns that the values should have had: GAE (arXiv 1506.02438).

    Args:
        rewards: (B, n) of each token.
        values: (B, n) the value before each token, by the model that sampled.
        mask: (B, n) bool; what comes after the last token is worth nothing.
        discount: γ.
        decay: λ.
    """
    advantage = torch.zeros_like(values[:, 0])
    following = torch.zeros_like(advantage)
    columns = []
    for token in reversed(range(values.shape[1])):
        there = mask[:, token]
        error = rewards[:, token] + discount * following - values[:, token]
        advantage = torch.where(there, error + discount * decay * advantage, 0.0)
        following = torch.where(there, values[:, token], 0.0)
        columns.append(advantage)
    advantages = torch.stack(columns[::-1], dim=1)
    return advantages, (advantages + values) * mask


def whitened(values: Tensor, mask: Tensor) -> Tensor:
    """(B, n) the values with mean 0 and variance 1 over all tokens that are there; 0 elsewhere."""
    there = values[mask]
    scale = torch.rsqrt(there.var(unbiased=False) + 1e-8)
    return (values - there.mean()) * scale * mask


def policy_loss(logp: Tensor, old_logp: Tensor, advantages: Tensor, mask: Tensor, clip: float = 0.2) -> Tensor:
    """Scalar: −A·min(ratio, clipped ratio) in the sense of PPO (arXiv 1707.06347), averaged by `mean_of_responses`."""
    ratio = (logp - old_logp).exp()
    losses = torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - clip, 1 + clip))
    return mean_of_responses(losses, mask)


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, clip: float = 0.2) -> Tensor:
    """Scalar: half the larger squared error of the value and of the value kept near the old one, averaged likewise."""
    near = old_values + (values - old_values).clamp(-clip, clip)
    losses = torch.maximum((values - returns) ** 2, (near - returns) ** 2) / 2
    return mean_of_responses(losses, mask)


def mean_of_responses(losses: Tensor, mask: Tensor) -> Tensor:
    """Scalar: each response's mean over its tokens, then the mean over responses."""
    return ((losses * mask).sum(1) / mask.sum(1)).mean()


def reward_of(verdict: Literal["correct", "incorrect"], *, readable: bool) -> float:
    """The reward of a response by its verdict, and by whether it has an answer at all."""
    return RIGHT if verdict == "correct" else READABLE if readable else UNREADABLE
