"""A model in numbers: what its memory follows from."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Adapters:
    """Low-rank adapters on a model."""

    parameters: int
    activations: int
    """Numbers that they keep for each token of a layer: the ranks of its adapted modules, added up."""


@dataclass(frozen=True)
class Shape:
    """A decoder-only transformer in numbers."""

    layers: int
    width: int
    """h: length of a hidden state."""
    mlp_width: int
    """f: length of a state inside the MLP."""
    heads: int
    query_width: int
    """heads × head dimension."""
    key_width: int
    """key-value heads × head dimension."""
    gated: bool
    """Whether the MLP multiplies two branches of length f (SwiGLU), or has one."""
    vocabulary: int
    positions: int | None
    """Most tokens that the model takes."""
    parameters: int
    """Those of a tied embedding count once."""
    layer_parameters: int
    """Of one layer."""
    largest_parameter: int
    """Numbers in the largest single tensor, commonly the embedding."""
