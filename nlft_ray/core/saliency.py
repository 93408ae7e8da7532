"""The conditions and weights that policies are written in. Ratios are compared as differences of logs."""

import numpy as np

from nlft_ray.core.facts import BoolArray, FloatArray

_LARGEST_EXPONENT = 700.0  # exp(710) overflows float64


def ratio_exceeds(logp: FloatArray, logp_other: FloatArray | None, ratio: float) -> BoolArray:
    """(n,) whether p/p_other > ratio. Where `logp_other` is None the condition drops out: true everywhere."""
    if logp_other is None:
        return np.ones(len(logp), dtype=bool)
    return logp.astype(np.float64) - logp_other > np.log(ratio)


def power(logp: FloatArray | None, exponent: float, *, n: int, scale: float = 1.0) -> FloatArray:
    """(n,) (p/scale)^exponent as float64; 1 everywhere where `logp` is None."""
    if logp is None:
        return np.ones(n)
    return np.exp(exponent * (logp.astype(np.float64) - np.log(scale)))


def sigmoid_of_ratio(logp: FloatArray, logp_other: FloatArray, tau: float) -> FloatArray:
    """(n,) sigmoid(p/p_other - tau) as float64."""
    ratio = np.exp(np.minimum(logp.astype(np.float64) - logp_other, _LARGEST_EXPONENT))
    return 1.0 / (1.0 + np.exp(tau - ratio))
