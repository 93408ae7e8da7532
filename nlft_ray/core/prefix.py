"""The beginning that prompts share: under causal attention its states are the same, whatever follows."""

from collections.abc import Sequence

_SHORTEST_WORTH_IT = 16
"""Fewest tokens worth sharing: below this, attending to them apart costs as much as computing them again."""


def common_prefix_length(prompts: Sequence[list[int]]) -> int:
    """Number of tokens that all prompts begin with; 0 where there are too few to be worth it.

    It stays short of every prompt's last token, which predicts the response's first.
    """
    if not prompts:
        return 0
    lowest, highest = min(prompts), max(prompts)  # in dictionary order: what these two share, all share
    longest = min(map(len, prompts)) - 1
    length = next((at for at in range(longest) if lowest[at] != highest[at]), longest)
    return length if length >= _SHORTEST_WORTH_IT else 0
