"""The longest common beginning of many prompts runs through the model once, not once a row.

Rows of a context share their instruction, which often holds hundreds of tokens of examples. Its keys and values are
computed once and read by every batch after it; causal attention makes them the same whatever follows.
"""

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

_SHORTEST_WORTH_IT = 16  # tokens: below this, reading the stored states costs as much as computing them
_KEPT = 4  # prefixes at once: one for each context, and one more


def common_prefix(prompts: Sequence[list[int]]) -> list[int]:
    """The tokens that all prompts begin with, short of every prompt's last: that one predicts the response's first."""
    if not prompts:
        return []
    lowest, highest = min(prompts), max(prompts)  # in dictionary order: what these two share, all share
    longest = min(map(len, prompts)) - 1
    length = next((at for at in range(longest) if lowest[at] != highest[at]), longest)
    return list(lowest[:length]) if length >= _SHORTEST_WORTH_IT else []


class PrefixStates:
    """Keys and values of the prefixes seen last, for one model."""

    def __init__(self, model: PreTrainedModel):
        self._model = model
        self._kept: OrderedDict[tuple[int, ...], Cache | None] = OrderedDict()

    def __call__(self, prefix: Sequence[int]) -> Cache | None:
        """States to hand to a forward pass of what follows; None where there is no prefix, or the model keeps
        something else than keys and values of every token (a sliding window, a recurrent state)."""
        if not prefix:
            return None
        key = tuple(prefix)
        if key not in self._kept:
            self._kept[key] = self._compute(prefix)
            if len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]

    def _compute(self, prefix: Sequence[int]) -> Cache | None:
        input_ids = torch.tensor([list(prefix)], device=self._model.device)
        computed = self._model(input_ids=input_ids, use_cache=True, logits_to_keep=1).past_key_values
        if not isinstance(computed, DynamicCache):
            return None
        layers = [_ReadOnlyLayer(layer) for layer in computed.layers if type(layer) is DynamicLayer]
        if len(layers) < len(computed.layers):
            return None
        shared = DynamicCache()
        shared.layers = list(layers)
        return shared


class _ReadOnlyLayer(DynamicLayer):
    """Keys and values (1, heads, P, dim) that every row of a batch reads, and that no batch adds to."""

    keys: Tensor
    values: Tensor

    def __init__(self, computed: DynamicLayer):
        super().__init__()
        assert computed.keys is not None
        assert computed.values is not None
        self.lazy_initialization(computed.keys, computed.values)
        self.keys, self.values = computed.keys, computed.values

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        rows = key_states.shape[0]
        return (
            torch.cat([self.keys.expand(rows, -1, -1, -1), key_states], dim=-2),
            torch.cat([self.values.expand(rows, -1, -1, -1), value_states], dim=-2),
        )
