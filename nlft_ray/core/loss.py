"""The loss: the term of each token, and the averages over tokens and examples."""

from typing import NamedTuple

from torch import Tensor
from torch.nn.functional import logsigmoid


class TokenLosses(NamedTuple):
    """The two terms of the loss, per token. Their sum is trained on; apart, they are worth plotting."""

    likelihood: Tensor
    """(N,) -weight * log p_base, for tokens that are raised."""
    unlikelihood: Tensor
    """(N,) -weight * log(1 - p_base), for tokens that are lowered."""

    @property
    def total(self) -> Tensor:
        """(N,) the sum of both terms."""
        return self.likelihood + self.unlikelihood


def weighted_losses(log_odds: Tensor, likelihood: Tensor, unlikelihood: Tensor) -> TokenLosses:
    """The weighted losses of N tokens, in the type of their log-odds.

    Args:
        log_odds: (N,) log(p/(1 - p)) of the tokens in the base context.
        likelihood: (N,) weights >= 0 of -log p; constants for the gradient.
        unlikelihood: (N,) weights >= 0 of -log(1 - p); constants for the gradient.
    """
    return TokenLosses(_loss(likelihood, log_odds), _loss(unlikelihood, -log_odds))


def _loss(weight: Tensor, log_odds: Tensor) -> Tensor:
    """-weight * log(sigmoid(log_odds)); 0 where the weight is, even if the logarithm is infinite there."""
    weight = weight.detach().to(log_odds.dtype)
    return -weight * logsigmoid(log_odds.where(weight > 0, 0.0))


def normalise_by_example(losses: Tensor, example: Tensor, tokens_per_example: Tensor, examples_in_step: int) -> Tensor:
    """Average over each example's tokens, then over the optimizer step's examples: all examples count alike.

    Summed over the step's micro-batches, however they were cut, it is the mean of the examples' own averages.

    Args:
        losses: (N,) losses of the tokens of one micro-batch.
        example: (N,) int64, which example of the micro-batch each token belongs to.
        tokens_per_example: (B,) number of response tokens of each example.
        examples_in_step: number of examples in the whole optimizer step, over all workers and micro-batches.

    Returns:
        Scalar.
    """
    return (losses / tokens_per_example[example]).sum() / examples_in_step


def normalise_by_weight(losses: Tensor, weight_in_step: float) -> Tensor:
    """Sum over tokens by the sum of all weights in the optimizer step: every unit of weight counts alike.

    Args:
        losses: (N,) losses of the tokens of one micro-batch.
        weight_in_step: sum of the likelihood and unlikelihood weights of the whole step, above 0.

    Returns:
        Scalar. Summed over the step's micro-batches it is the step's loss.
    """
    return losses.sum() / weight_in_step
