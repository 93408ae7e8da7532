"""Keys and values of what prompts begin with in common, computed once.

Causal attention makes them the same whatever follows. The beginning is often an instruction of hundreds of tokens of
examples: it runs through the model once and is read by every batch after it.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from nlft_ray.models.attention import body

_PREFIXES_AT_ONCE = 4  # one for each context, and one more


class PrefixStates:
    """Keys and values of the prefixes seen last, for one model that `abilities.stores_prefixes`."""

    def __init__(self, model: PreTrainedModel):
        self._model = model
        self._states: OrderedDict[tuple[int, ...], Cache] = OrderedDict()

    def get(self, prefix: Sequence[int]) -> Cache | None:
        """States to hand to a forward pass over what follows the prefix; None where the prefix is empty."""
        if not prefix:
            return None
        key = tuple(prefix)
        if key not in self._states:
            self._states[key] = self._compute(prefix)
            if len(self._states) > _PREFIXES_AT_ONCE:
                self._states.popitem(last=False)
        self._states.move_to_end(key)
        return self._states[key]

    def _compute(self, prefix: Sequence[int]) -> Cache:
        input_ids = torch.tensor([list(prefix)], device=self._model.device)
        computed = DynamicCache()  # which keeps all tokens of a sliding window too: masks know how far it reaches
        body(self._model)(input_ids=input_ids, use_cache=True, past_key_values=computed)
        shared = DynamicCache()
        shared.layers = [_ReadOnlyLayer(layer) for layer in computed.layers]
        return shared


class _ReadOnlyLayer(DynamicLayer):
    """Keys and values (1, heads, P, dim) that every row of a batch reads, and that no batch adds to."""

    keys: Tensor
    values: Tensor

    def __init__(self, computed: Any):
        super().__init__()
        self.keys, self.values = computed.keys, computed.values
        self.dtype, self.device = computed.dtype, computed.device
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        rows = key_states.shape[0]
        return (
            torch.cat([self.keys.expand(rows, -1, -1, -1), key_states], dim=-2),
            torch.cat([self.values.expand(rows, -1, -1, -1), value_states], dim=-2),
        )
