"""Norms of the hidden states, and cosines between near neighbours: all that growing needs of them."""

import torch
from torch import Tensor


def hidden_geometry(hidden: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """Norms and windowed cosines of the hidden states of one response.

    Args:
        hidden: (n, d) final hidden states, any floating type; row t predicts response token t.
        window: how many following tokens each token is compared with (K).

    Returns:
        norm (n,) and cosine (n, window), both float32. Column k of row t is the cosine of rows t and
        t + k + 1; it is 0 beyond the end and where a norm is 0.
    """
    hidden = hidden.float()  # bf16 sums over thousands of dimensions would lose the second digit
    norm = hidden.norm(dim=-1)
    unit = hidden / norm.clamp_min(torch.finfo(torch.float32).tiny)[:, None]
    n = len(hidden)
    cosine = hidden.new_zeros(n, window)
    for gap in range(1, min(window, n - 1) + 1):
        # a product and a sum stay in float32 everywhere; a matrix product may run in TF32 on a GPU
        cosine[: n - gap, gap - 1] = (unit[: n - gap] * unit[gap:]).sum(-1)
    return norm, cosine
