"""The loss: what each token adds to it, and how tokens and examples are averaged."""

from typing import NamedTuple

from torch import Tensor
from torch.nn.functional import logsigmoid

from nlft_ray.core.logprobs import CHUNK_SIZE, token_log_odds


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


def token_losses(
    logits: Tensor, targets: Tensor, likelihood: Tensor, unlikelihood: Tensor, chunk_size: int = CHUNK_SIZE
) -> TokenLosses:
    """The weighted losses of N tokens, in float32 (float64 for float64 logits).

    Args:
        logits: (N, V) of the base context; row i predicts `targets[i]`.
        targets: (N,) int64 token ids.
        likelihood: (N,) weights >= 0 of -log p; constants for the gradient.
        unlikelihood: (N,) weights >= 0 of -log(1 - p); constants for the gradient.
        chunk_size: rows of logits held in float32 at a time.
    """
    return weighted_losses(token_log_odds(logits, targets, chunk_size), likelihood, unlikelihood)


def weighted_losses(log_odds: Tensor, likelihood: Tensor, unlikelihood: Tensor) -> TokenLosses:
    """`token_losses` from the (N,) log-odds of the tokens, log(p/(1 - p))."""
    return TokenLosses(_weighted(likelihood, log_odds), _weighted(unlikelihood, -log_odds))


def _weighted(weight: Tensor, log_odds: Tensor) -> Tensor:
    """-weight * log(sigmoid(log_odds)); 0 where the weight is, even if the logarithm is infinite there."""
    weight = weight.detach().to(log_odds.dtype)
    return -weight * logsigmoid(log_odds.where(weight > 0, 0.0))


def example_loss(losses: TokenLosses) -> Tensor:
    """Scalar loss of one example, given the losses of its n response tokens: their average."""
    return losses.total.mean()


def normalise_by_example(losses: Tensor, example: Tensor, tokens_per_example: Tensor, examples_in_step: int) -> Tensor:
    """Average over each example's tokens, then over the optimizer step's examples: all examples count alike.

    Summed over the step's micro-batches, however they were cut, it is the mean of `example_loss`.

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
