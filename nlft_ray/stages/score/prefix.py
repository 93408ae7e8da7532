"""What the rows' prompts begin with in common runs through the model once; causal attention makes it the same whatever
follows. It is their instruction, which often holds hundreds of tokens of examples: its keys and values are computed
once and read by every batch after it.
"""

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from nlft_ray.models.packing import keeps_every_token

_KEPT = 4  # prefixes at once: one for each context, and one more


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
        computed = self._model.base_model(input_ids=input_ids, use_cache=True).past_key_values
        if not keeps_every_token(computed):
            return None
        shared = DynamicCache()
        shared.layers = [_ReadOnlyLayer(layer) for layer in computed.layers]
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
