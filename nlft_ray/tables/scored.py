"""Rows of the scored table as the facts that policies read."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from nlft_ray.core.facts import FloatArray, TokenFacts
from nlft_ray.tables.schema import CORRECT


def facts_of(row: Mapping[str, Any]) -> TokenFacts:
    """The facts of one row of the scored table.

    Raises:
        ValueError: the row breaks the table's contract.
    """
    logp_base = np.asarray(row["logp_base"], dtype=np.float32)
    return TokenFacts(
        correct=row["verdict"] == CORRECT,
        logp_base=logp_base,
        logp_judge=_optional(row["logp_judge"]),
        logp_standard=_optional(row["logp_standard"]),
        hidden_norm=np.asarray(row["hidden_norm"], dtype=np.float32),
        hidden_cos=np.asarray(row["hidden_cos"], dtype=np.float32).reshape(len(logp_base), -1),
    )


def _optional(values: Any) -> FloatArray | None:
    return None if values is None else np.asarray(values, dtype=np.float32)
