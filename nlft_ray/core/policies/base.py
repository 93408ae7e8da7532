"""The base of policies, and what each returns: a weight and a sign for every token."""

import dataclasses
import math
import operator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt

from nlft_ray.core.facts import BoolArray, FloatArray, TokenFacts
from nlft_ray.core.growing import Grown

Role = Literal["losing", "scoring", "near", "silent", "plain"]
"""Name under which terminal and page show a token; see `TokenWeights.roles`."""

_BOUNDS = {"gt": operator.gt, "ge": operator.ge, "lt": operator.lt, "le": operator.le}


@dataclass(frozen=True, eq=False)
class TokenWeights:
    """Weights and signs of the n trained tokens of one example."""

    weight: FloatArray
    """(n,) float64, >= 0."""
    sign: npt.NDArray[np.int8]
    """(n,) +1 raises the token (term: -weight * log p), -1 lowers it (-weight * log(1 - p)), 0 neither."""
    anchor: FloatArray
    """(n,) float64 >= 0, weight of the plain likelihood term that is added, whatever the sign."""
    saliency: BoolArray
    """(n,) the tokens that carried the success (scoring) or the mistake (losing)."""
    near: BoolArray
    """(n,) the tokens reached by growing from those."""
    growth_truncated: int
    """Number of saliency tokens whose growth the stored window cut short."""

    @classmethod
    def build(
        cls,
        weight: FloatArray,
        *,
        saliency: BoolArray | None = None,
        lowered: BoolArray | None = None,
        grown: Grown | None = None,
        anchor: float = 0.0,
    ) -> Self:
        """Build from what a rule sets: by default no token is salient, lowered or near. Signs follow `lowered`."""
        nowhere = np.zeros(len(weight), dtype=bool)
        direction = np.where(nowhere if lowered is None else lowered, -1, 1)
        return cls(
            weight=weight,
            sign=np.where(weight > 0, direction, 0).astype(np.int8),
            anchor=np.full(len(weight), anchor),
            saliency=nowhere if saliency is None else saliency,
            near=nowhere if grown is None else grown.near,
            growth_truncated=0 if grown is None else grown.truncated,
        )

    @property
    def roles(self) -> npt.NDArray[np.str_]:
        """(n,) the `Role` of each token.

        A losing token is lowered, a silent one is left alone (its sign is 0), and only a token that is raised can
        be a scoring or a near one: a saliency token whose weight a policy sets to 0 is silent. The page's twin is
        `role` in stages/report/assets/policies.js.
        """
        conditions = [self.sign < 0, self.sign == 0, self.saliency, self.near]
        return np.select(conditions, ["losing", "silent", "scoring", "near"], default="plain")

    @property
    def likelihood(self) -> FloatArray:
        """(n,) weight of -log p."""
        return np.where(self.sign > 0, self.weight, 0.0) + self.anchor

    @property
    def unlikelihood(self) -> FloatArray:
        """(n,) weight of -log(1 - p)."""
        return np.where(self.sign < 0, self.weight, 0.0)


def option(default: Any, description: str, **bounds: float) -> Any:
    """A field of a policy: its default, its meaning with unit and source, and its bounds (gt, ge, lt, le).

    They are kept in the dataclass field's metadata, where pydantic finds them too (a docstring under the
    field would not reach a policy that inherits the field).
    """
    return dataclasses.field(default=default, metadata={"description": description, **bounds})


@dataclass(frozen=True)
class Policy:
    """Turns facts into weights. A subclass sets `name` and overrides the method that its `target` calls for.

    Raises:
        ValueError: a number is out of its bounds, NaN or infinite.
    """

    # read by pydantic where a configuration holds a policy: unknown keys are refused
    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "use_attribute_docstrings": True}

    target: ClassVar[Literal["response", "standard_answer"]] = "response"
    """Which tokens are trained: the response's (`weigh`) or the standard answer's (`weigh_tokens`)."""

    name: str = ""
    loss_scale: float = option(1.0, "The loss is multiplied by this.", gt=0)

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{field.name} must be finite, not {value}")
            for bound, holds in _BOUNDS.items():
                if bound in field.metadata and not holds(value, field.metadata[bound]):
                    raise ValueError(f"{field.name} must be {bound} {field.metadata[bound]}, not {value}")

    def weigh(self, facts: TokenFacts) -> TokenWeights:
        """Weights of the n tokens of a scored response."""
        raise TypeError(f"policy '{self.name}' does not train on responses: call weigh_tokens")

    def weigh_tokens(self, n: int) -> TokenWeights:
        """Weights of the n tokens of a standard answer."""
        raise TypeError(f"policy '{self.name}' does not train on standard answers: call weigh")
