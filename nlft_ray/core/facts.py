"""Facts that scoring finds out about one response. They depend on no threshold: policies turn them into weights."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.floating[Any]]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class TokenFacts:
    """Facts about the n tokens of one response, the end-of-turn token included; float32 or float64 arrays.

    Every entry belongs to the token it is about: `logp_base[t]` and `hidden_norm[t]` describe the prediction
    *of* response token t, made one position before it.

    Raises:
        ValueError: a shape does not fit, a value is NaN or infinite, or `logp_judge` contradicts the verdict.
    """

    correct: bool
    """The verdict on the response."""
    logp_base: FloatArray
    """(n,) natural log-probability of each token under the base context."""
    logp_judge: FloatArray | None
    """(n,) natural log-probability under the judge context; None exactly where the response is correct."""
    logp_standard: FloatArray | None
    """(n,) natural log-probability under the standard context; None where the row has no standard answer."""
    hidden_norm: FloatArray
    """(n,) Euclidean norm of the final hidden state h[t] that predicts token t in the base context."""
    hidden_cos: FloatArray
    """(n, K) column k of row t: cosine of h[t] and h[t + k + 1], 0 beyond the end of the response."""
    logp_contexts: Mapping[str, FloatArray] = field(default_factory=dict)
    """(n,) natural log-probability under each further context that applies to the response, by the context's name."""
    entropy: FloatArray | None = None
    """(n,) entropy in nats of the base context's prediction at each token; None where it was not scored."""
    pass_rate: float | None = None
    """Share of correct ones among the table's responses to the same question; None where it is not known."""

    def __post_init__(self) -> None:
        if self.logp_base.ndim != 1 or self.n == 0:
            raise ValueError(f"logp_base must have shape (n,) with n >= 1, not {self.logp_base.shape}")
        if self.correct != (self.logp_judge is None):
            raise ValueError("logp_judge must be None for a correct response, and an array for an incorrect one")
        for name in ("logp_base", "logp_judge", "logp_standard", "hidden_norm", "hidden_cos", "entropy"):
            self._check(name, getattr(self, name))
        for name, values in self.logp_contexts.items():
            self._check(f"logp_contexts['{name}']", values)

    def _check(self, name: str, values: FloatArray | None) -> None:
        if values is None:
            return
        dimensions = 2 if name == "hidden_cos" else 1
        if values.ndim != dimensions or len(values) != self.n:
            shape = "(n, K)" if name == "hidden_cos" else "(n,)"
            raise ValueError(f"{name} must have shape {shape} with n = {self.n}, not {values.shape}")
        if not np.isfinite(values).all():
            raise ValueError(f"{name} holds NaN or infinity")

    @property
    def n(self) -> int:
        """Number of response tokens."""
        return len(self.logp_base)

    @property
    def p_base(self) -> FloatArray:
        """(n,) probability of each token under the base context."""
        return np.exp(self.logp_base)

    @property
    def p_judge(self) -> FloatArray | None:
        """(n,) probability of each token under the judge context; None for a correct response."""
        return None if self.logp_judge is None else np.exp(self.logp_judge)

    @property
    def p_standard(self) -> FloatArray | None:
        """(n,) probability of each token under the standard context; None without a standard answer."""
        return None if self.logp_standard is None else np.exp(self.logp_standard)

    def cosine(self, a: int, b: int) -> float:
        """Cosine of h[a] and h[b], two different tokens at most K apart."""
        return float(self.hidden_cos[min(a, b), abs(a - b) - 1])
