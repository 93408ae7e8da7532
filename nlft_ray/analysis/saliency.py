"""One scored response, token by token, as a policy sees it: what a terminal or a page shows."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import pyarrow as pa
import pyarrow.compute as pc

from nlft_ray.core.facts import FloatArray, TokenFacts
from nlft_ray.core.policies.base import Policy, Role
from nlft_ray.storage.folder import Folder
from nlft_ray.tables.schema import INCORRECT, SCORED
from nlft_ray.tables.scored import facts_of, read_facts
from nlft_ray.tables.shards import DATA

_CONTEXT = 32
"""Tokens that are decoded with each token at the least, where there are so many before it."""


@dataclass(frozen=True)
class TokenView:
    """One token: its characters, its facts, and its weight and role under the policy."""

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
    """The tokens of one response, with its row and the policy's name."""

    example: Mapping[str, Any]  # row of the examples table
    policy: str
    tokens: list[TokenView]


def losing_example(scored: Folder, examples: Folder, tokenizer: Any, policy: Policy) -> SaliencyView | None:
    """The first incorrect response in which the policy finds a losing token; None where there is none."""
    if policy.target != "response":
        return None
    for row in read_facts(scored, SCORED.names):
        if row["verdict"] == INCORRECT and policy.weigh(facts_of(row)).sign.min() < 0:
            example = find_row(examples, row["id"])
            assert example is not None  # it was scored
            return SaliencyView(example, policy.name, token_views(row, policy, tokenizer))
    return None


def find_row(folder: Folder, row_id: str, part: str = DATA) -> dict[str, Any] | None:
    """The first row with this id in a table, or in its rejects, read from the one row group that holds it."""
    for name in (folder / part).files(".parquet"):
        file = (folder / part).open_parquet(name)
        for group in range(file.num_row_groups):
            at = pc.index(file.read_row_group(group, columns=["id"])["id"], pa.scalar(row_id)).as_py()
            if at >= 0:
                return file.read_row_group(group).slice(at, 1).to_pylist()[0]
    return None


def token_views(row: Mapping[str, Any], policy: Policy, tokenizer: Any) -> list[TokenView]:
    """Every response token of a scored row as the policy sees it."""
    facts = facts_of(row)
    weights = policy.weigh(facts)
    roles = weights.roles.tolist()
    ids, tops = row["input_ids"][row["response_start"] :], row["top_standard"]
    return [
        TokenView(
            text=text,
            p_base=math.exp(facts.logp_base[t]),
            p_judge=_probability(facts.logp_judge, t),
            p_standard=_probability(facts.logp_standard, t),
            top_standard="" if tops is None else tokenizer.decode([int(tops[t])]),
            top_p=_probability(row["top_logp_standard"], t),
            role=cast(Role, roles[t]),
            weight=float(weights.weight[t]),
            sign=int(weights.sign[t]),
            neighbours=dict(_neighbours(facts, t)),
        )
        for t, text in enumerate(token_texts(tokenizer, [int(token) for token in ids]))
    ]


def token_texts(tokenizer: Any, ids: list[int]) -> list[str]:
    """The characters that each token adds; joined, they are the decoded text.

    A character spread over several tokens belongs to the last of them. Time is linear in the number of tokens: each is
    decoded with some tens of those before it, since spaces may come and go where tokens meet or a text begins.
    """
    texts: list[str] = []
    start, before = 0, ""  # where what is decoded begins, and its text up to the last complete character
    complete = 0  # a place at which a character ends, from which to decode next
    for end in range(1, len(ids) + 1):
        decoded = tokenizer.decode(ids[start:end])
        if decoded.endswith("\N{REPLACEMENT CHARACTER}") and end < len(ids):
            texts.append("")  # the character is not complete yet
            continue
        texts.append(decoded[len(before) :])
        before = decoded
        if end - complete >= _CONTEXT:
            start, complete = complete, end
            before = tokenizer.decode(ids[start:end])
    return texts


def _neighbours(facts: TokenFacts, t: int) -> Iterator[tuple[int, float]]:
    """Offset and cosine of the hidden states for the tokens around token t, within the stored window."""
    window = facts.hidden_cos.shape[1]
    for offset in range(-min(window, t), min(window, facts.n - 1 - t) + 1):
        if offset:
            yield offset, facts.cosine(t, t + offset)


def _probability(logp: FloatArray | None, t: int) -> float:
    return math.nan if logp is None else math.exp(logp[t])
