"""The LM head and the log-odds of its targets in one, chunk by chunk: no more than a chunk of logits ever exists.

The log-odds o = log(p/(1 - p)) of a token (see logprobs.py) depend on one row of hidden states h alone, and on nothing
that the loss does with them later. So their derivative do/dh = (onehot(target) - softmax of the others) W can be taken
while the logits are at hand, (M, d) numbers are kept instead of (M, V), and nothing is computed twice. Only where
the head itself is trained are the logits computed again in the backward pass.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK_BYTES = {"cpu": 2**24, "gpu": 2**28}
"""Bytes of logits in float32 at a time, by device: on a CPU they should fit its cache."""
FEWEST_ROWS = 64
"""Smallest number of tokens whose logits exist at a time: with fewer, the product of matrices is slow."""


class _HeadLogOdds(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, chunk_bytes: int
    ) -> Tensor:
        head_needs_grad, hidden_needs_grad = any(ctx.needs_input_grad[1:3]), ctx.needs_input_grad[0]
        log_odds = hidden.new_empty(len(hidden), dtype=torch.promote_types(hidden.dtype, torch.float32))
        derivative = torch.empty_like(hidden) if hidden_needs_grad and not head_needs_grad else None
        for rows in _chunks(len(hidden), weight.shape[0], chunk_bytes):
            log_odds[rows], of_logits = _odds(_logits(hidden[rows], weight, bias), targets[rows])
            if derivative is not None:
                torch.mm(of_logits.to(weight.dtype), weight, out=derivative[rows])
        ctx.save_for_backward(*((hidden, weight, bias, targets) if head_needs_grad else (derivative,)))
        ctx.chunk_bytes = chunk_bytes
        return log_odds

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        if len(ctx.saved_tensors) == 1:
            (derivative,) = ctx.saved_tensors
            return (upstream[:, None] * derivative).to(derivative.dtype), None, None, None, None
        hidden, weight, bias, targets = ctx.saved_tensors
        of_hidden = torch.empty_like(hidden)
        of_weight = torch.zeros_like(weight, dtype=upstream.dtype)
        of_bias = None if bias is None else torch.zeros_like(bias, dtype=upstream.dtype)
        for rows in _chunks(len(hidden), weight.shape[0], ctx.chunk_bytes):
            _, of_logits = _odds(_logits(hidden[rows], weight, bias), targets[rows])
            of_logits *= upstream[rows, None]
            if of_bias is not None:
                of_bias += of_logits.sum(0)
            of_logits = of_logits.to(weight.dtype)
            torch.mm(of_logits, weight, out=of_hidden[rows])
            of_weight += of_logits.T @ hidden[rows]
        of_bias = None if of_bias is None else of_bias.to(bias.dtype)
        return of_hidden, of_weight.to(weight.dtype), of_bias, None, None


def head_log_odds(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, chunk_bytes: int | None = None
) -> Tensor:
    """(M,) log(p/(1 - p)) of each target under the logits `hidden @ weight.T + bias`, differentiable.

    Args:
        hidden: (M, d) of any floating type, what the head reads.
        weight: (V, d) of the same type, V >= 2.
        bias: (V,) or None.
        targets: (M,) int64 token ids.
        chunk_bytes: size of the logits worked on at a time; None, what `CHUNK_BYTES` says.

    Returns:
        (M,) float32, or float64 for float64 hidden states.
    """
    usual = CHUNK_BYTES["cpu" if hidden.device.type == "cpu" else "gpu"]
    return _HeadLogOdds.apply(hidden, weight, bias, targets, chunk_bytes or usual)


def _chunks(rows: int, vocabulary: int, chunk_bytes: int) -> Iterator[slice]:
    size = max(chunk_bytes // (4 * vocabulary), FEWEST_ROWS)
    return (slice(start, start + size) for start in range(0, rows, size))


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """(m, V) logits in float32 (float64 for float64), a copy that may be overwritten."""
    logits = torch.nn.functional.linear(hidden, weight, bias)
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _odds(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """(m,) log-odds of the targets and their (m, V) derivative by the logits, which takes the logits' place."""
    targets = targets[:, None]
    chosen = logits.gather(1, targets)
    others = logits.scatter_(1, targets, float("-inf"))
    highest = others.amax(1, keepdim=True).clamp_min_(torch.finfo(logits.dtype).min)  # no other may be possible
    powers = others.sub_(highest).exp_()
    total = powers.sum(1, keepdim=True)
    log_odds = chosen - (highest + total.log())
    shares = powers.mul_(-total.clamp_min(torch.finfo(logits.dtype).tiny).reciprocal())
    return log_odds.squeeze(1), shares.scatter_(1, targets, 1.0)
