"""Log-odds of chosen tokens from logits, in chunks, in float32, with an exact and frugal gradient.

The log-odds o = z[target] - logsumexp(the other z) are log(p/(1 - p)). From them follow log p = logsigmoid(o) and
log(1 - p) = logsigmoid(-o). Both stay exact as p -> 0 and as p -> 1, where 1 - p computed from a float32 p would be 0;
and the gradient of o, onehot(target) minus the softmax of the others, is bounded.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK_SIZE = 512
"""Rows of logits in float32 at a time: 256 MiB for a vocabulary of 128 Ki tokens."""


class _LogOdds(torch.autograd.Function):
    """Log-odds, chunked both ways: autograd's own logsumexp would keep a float32 copy of all logits for backward."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, chunk_size: int) -> Tensor:
        dtype = torch.promote_types(logits.dtype, torch.float32)
        log_odds, others = logits.new_empty(2, len(targets), dtype=dtype)
        for start in range(0, len(targets), chunk_size):
            rows = slice(start, start + chunk_size)
            target = targets[rows, None]
            chunk = logits[rows].to(dtype, copy=True)
            chosen = chunk.gather(1, target).squeeze(1)
            others[rows] = chunk.scatter_(1, target, float("-inf")).logsumexp(1)
            log_odds[rows] = chosen - others[rows]
        ctx.save_for_backward(logits, targets, others)
        ctx.chunk_size = chunk_size
        return log_odds

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_log_odds: Tensor) -> tuple[Tensor, None, None]:
        logits, targets, others = ctx.saved_tensors
        grad_logits = torch.empty_like(logits)
        for start in range(0, len(targets), ctx.chunk_size):
            rows = slice(start, start + ctx.chunk_size)
            share = (logits[rows].to(others.dtype) - others[rows, None]).exp_()
            share.scatter_(1, targets[rows, None], -1.0)
            grad_logits[rows] = share.mul_(-grad_log_odds[rows, None]).to(logits.dtype)
        return grad_logits, None, None


def token_log_odds(logits: Tensor, targets: Tensor, chunk_size: int = CHUNK_SIZE) -> Tensor:
    """(N,) log(p/(1 - p)) of each target, differentiable.

    Args:
        logits: (N, V) of any floating type, V >= 2.
        targets: (N,) int64 token ids.
        chunk_size: rows worked on at a time; no float32 copy of more rows is ever made.

    Returns:
        (N,) float32, or float64 for float64 logits.
    """
    return _LogOdds.apply(logits, targets, chunk_size)
