"""One scored response, token by token, as a policy sees it: what a terminal or a page shows."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from nlft_ray.core.policies.base import Policy, Role, TokenWeights
from nlft_ray.storage.folder import Folder
from nlft_ray.tables.schema import INCORRECT
from nlft_ray.tables.scored import facts_of
from nlft_ray.tables.shards import read_rows


@dataclass(frozen=True)
class TokenView:
    """One token: its characters, its facts, and what the policy makes of it."""

    text: str
    p_base: float
    p_judge: float  # NaN where the response is correct
    p_standard: float  # NaN without a standard answer
    top_standard: str  # what the standard context would have put there; empty without one
    top_p: float  # its probability; NaN without one
    role: Role
    weight: float
    sign: int  # -1 lowered, 0 left alone, +1 raised
    neighbours: Mapping[int, float]  # offset (-1: the token before) → cosine of the hidden states, within the window


@dataclass(frozen=True)
class SaliencyView:
    """One response, with what a reader needs beside it."""

    example: Mapping[str, Any]  # row of the examples table
    policy: str
    tokens: list[TokenView]


def losing_example(scored: Folder, examples: Folder, tokenizer: Any, policy: Policy) -> SaliencyView | None:
    """The first incorrect response in which the policy finds a losing token; None where there is none."""
    if policy.target != "response":
        return None
    for row in read_rows(scored):
        if row["verdict"] != INCORRECT:
            continue
        weights = policy.weigh(facts_of(row))
        if weights.sign.min() < 0:
            example = next(example for example in read_rows(examples) if example["id"] == row["id"])
            return SaliencyView(example, policy.name, token_views(row, weights, tokenizer))
    return None


def token_views(row: Mapping[str, Any], weights: TokenWeights, tokenizer: Any) -> list[TokenView]:
    """Every response token of a scored row under a policy's weights."""
    texts = token_texts(tokenizer, row["input_ids"][row["response_start"] :])
    roles = weights.roles.tolist()
    tops = row["top_standard"]
    tops = [] if tops is None else tops
    return [
        TokenView(
            text=text,
            p_base=math.exp(row["logp_base"][t]),
            p_judge=_probability(row["logp_judge"], t),
            p_standard=_probability(row["logp_standard"], t),
            top_standard=tokenizer.decode([tops[t]]) if len(tops) else "",
            top_p=_probability(row["top_logp_standard"], t),
            role=cast(Role, roles[t]),
            weight=float(weights.weight[t]),
            sign=int(weights.sign[t]),
            neighbours=dict(_neighbours(row["hidden_cos"], t, len(texts))),
        )
        for t, text in enumerate(texts)
    ]


def token_texts(tokenizer: Any, ids: list[int]) -> list[str]:
    """The characters that each token adds; joined, they are the decoded text.

    A character spread over several tokens belongs to the last of them.
    """
    texts, shown = [], ""
    for end in range(1, len(ids) + 1):
        decoded = tokenizer.decode(ids[:end])
        if decoded.endswith("\N{REPLACEMENT CHARACTER}") and end < len(ids):
            texts.append("")  # the character is not complete yet
            continue
        texts.append(decoded[len(shown) :])
        shown = decoded
    return texts


def _neighbours(hidden_cos: Sequence[float], t: int, n: int) -> Iterator[tuple[int, float]]:
    """From (n·K,) cosines of each token to the K that follow it: those of token t, in both directions."""
    window = len(hidden_cos) // n
    for offset in range(-min(window, t), min(window, n - 1 - t) + 1):
        if offset:
            yield offset, float(hidden_cos[min(t, t + offset) * window + abs(offset) - 1])


def _probability(logp: list[float] | None, t: int) -> float:
    return np.nan if logp is None else math.exp(logp[t])
