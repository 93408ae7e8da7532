"""The numbers of a model that its memory follows from."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Adapters:
    """Low-rank adapters on a model."""

    parameters: int
    activations: int
    """Numbers kept for each token of a layer: the ranks of its adapted modules, added up."""


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
    """Largest number of tokens that the model takes; None where its configuration does not say."""
    parameters: int
    """Parameters of the whole model; a tied embedding counts once."""
    layer_parameters: int
    """Parameters of one layer."""
    largest_parameter: int
    """Numbers in the largest single tensor, commonly the embedding."""
