"""The model's LM head, which can be asked for the log-odds of certain tokens instead of all logits."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from nlft_ray.core.head import head_log_odds


class LogOddsHead(nn.Linear):
    """Takes the place of a linear LM head, with its parameters under their names.

    The model's own forward calls it, so that whatever spreads parameters over workers brings this one together.
    """

    _wanted: tuple[Tensor, Tensor] | None = None

    @classmethod
    def replace(cls, model: Any) -> "LogOddsHead | None":
        """Put one into the model; None, and nothing done, where its head is not plainly linear."""
        head = model.get_output_embeddings()
        if type(head) is not nn.Linear:
            return None
        with torch.device("meta"):
            own = cls(head.in_features, head.out_features, bias=head.bias is not None)
        own.weight, own.bias = head.weight, head.bias
        model.set_output_embeddings(own)
        return own

    @contextmanager
    def asked_for(self, keep: Tensor, targets: Tensor) -> Iterator[None]:
        """Within, the head gives (M, 1) log-odds of the M targets at the positions to keep (R, T), not logits."""
        self._wanted = keep, targets
        try:
            yield
        finally:
            self._wanted = None

    def forward(self, hidden: Tensor) -> Tensor:
        if self._wanted is None:
            return super().forward(hidden)
        keep, targets = self._wanted
        return head_log_odds(hidden[keep], self.weight, self.bias, targets)[:, None]
