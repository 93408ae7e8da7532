"""A scored table as the page holds it: each example's texts in JSON, the facts of all tokens in packed columns.

The page computes weights itself, so the facts must reach it exactly: float32 as they stand in the table, never
rounded to decimals. A column is the bytes of all examples' values, one after the other, regrouped (all first bytes,
then all second bytes, …: exponents repeat, mantissas do not), deflated and written in base64.
"""

import base64
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from nlft_ray.analysis.saliency import token_texts
from nlft_ray.core.facts import TokenFacts
from nlft_ray.core.policies import Policy, TokenWeights
from nlft_ray.core.policies.base import Role
from nlft_ray.errors import UserError
from nlft_ray.storage.folder import Folder
from nlft_ray.tables.schema import CORRECT, SCORED
from nlft_ray.tables.scored import facts_of, read_facts
from nlft_ray.tables.shards import read_rows

_NO_TOKEN = -1  # in the column `top`
_NO_IDS = np.zeros(0, dtype=np.int32)
_TEXTS = ("instruction", "question", "standard_answer", "judgment")


@dataclass(frozen=True)
class TokenSet:
    """One scored folder, ready for the page."""

    name: str
    window: int
    """K: `hidden_cos` holds so many cosines for each token."""
    examples: list[dict[str, Any]]
    """Texts of each example, and its `tokens`: the characters that each adds."""
    top_texts: list[str]
    """The texts that the column `top` counts through."""
    columns: dict[str, str]
    """Packed columns over all examples' tokens; zero where an example lacks the fact."""
    weights: dict[str, dict[str, Any]]
    """Weights by policy, for those that the page has no formulas for: see `_weights`."""


def read_tokens(
    name: str,
    scored: Folder,
    examples: Folder | None,
    tokenizer: Any,
    *,
    policies: Sequence[Policy],
    limit: int,
    only: set[str] | None = None,
) -> TokenSet:
    """Read a scored folder for the page.

    Args:
        name: heading of the set.
        scored: the scored folder.
        examples: the table that was scored, for its texts; where it is None, the prompt stands for them.
        tokenizer: that of the model that scored.
        policies: those that Python weighs the rows by.
        limit: number of rows that are read at the most.
        only: ids of the rows that count; None for all.

    Raises:
        UserError: the rows hold different numbers of cosines, so they were not scored in one go.
    """
    every = read_facts(scored, SCORED.names)
    rows = [*islice((row for row in every if only is None or row["id"] in only), limit)]
    texts = _texts_by_id(examples, {row["id"] for row in rows})
    windows = {len(row["hidden_cos"]) // len(row["logp_base"]) for row in rows}
    if len(windows) > 1:
        raise UserError(f"input: {scored} holds rows with different hidden_window: {sorted(windows)}.")
    tops = [row["top_standard"] for row in rows if row["top_standard"] is not None]
    top_ids = np.unique(np.concatenate([_NO_IDS, *tops]))
    facts = [facts_of(row) for row in rows]
    return TokenSet(
        name=name,
        window=windows.pop() if windows else 0,
        examples=[_example(row, texts.get(row["id"]), tokenizer) for row in rows],
        top_texts=[tokenizer.decode([token]) for token in top_ids.tolist()],
        columns={column: pack(values) for column, values in _columns(rows, facts, top_ids)},
        weights={policy.name: _weights(policy, facts) for policy in policies},
    )


def _columns(
    rows: Sequence[Mapping[str, Any]], facts: Sequence[TokenFacts], top_ids: npt.NDArray[np.int32]
) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    """Name and values of each column; `top` holds places in the sorted `top_ids`."""
    for name in ("logp_base", "logp_judge", "logp_standard", "hidden_norm"):
        yield name, _joined([_or_zeros(getattr(fact, name), fact.n) for fact in facts])
    yield "hidden_cos", _joined([fact.hidden_cos.ravel() for fact in facts])
    # Correct responses are weighed by p_standard in float32, and exp in float32 differs between libraries in the
    # last bit, which the fifth power of the scoring weight magnifies: so the page gets what Python computed.
    yield "p_standard", _joined([_or_zeros(fact.p_standard if fact.correct else None, fact.n) for fact in facts])
    yield "top_logp_standard", _joined([_or_zeros(row["top_logp_standard"], len(row["logp_base"])) for row in rows])
    tops = [
        np.full(len(row["logp_base"]), _NO_TOKEN)
        if row["top_standard"] is None
        else np.searchsorted(top_ids, row["top_standard"])
        for row in rows
    ]
    yield "top", np.concatenate([_NO_IDS, *tops]).astype("<i4")


def _weights(policy: Policy, facts: Sequence[TokenFacts]) -> dict[str, Any]:
    """Weight, anchor and role of every token, packed; a role is the place of its name in `roles`."""
    weights = [_weigh(policy, fact) for fact in facts]
    roles = get_args(Role)
    numbers = [np.argmax(one.roles[:, None] == roles, axis=1) for one in weights]
    columns = {
        "weight": _joined([one.weight for one in weights]),
        "anchor": _joined([one.anchor for one in weights]),
        "role": np.concatenate([_NO_IDS, *numbers]).astype("<i4"),
    }
    return {
        "roles": roles,
        "columns": {name: pack(values) for name, values in columns.items()},
        "growth_truncated": [one.growth_truncated for one in weights],
    }


def _weigh(policy: Policy, facts: TokenFacts) -> TokenWeights:
    """Weights of a response; none where the policy trains the standard answer instead."""
    return policy.weigh(facts) if policy.target == "response" else TokenWeights.build(np.zeros(facts.n))


def _joined(parts: list[Any]) -> npt.NDArray[np.float32]:
    return np.concatenate([np.asarray(part, dtype="<f4") for part in parts] or [np.zeros(0, dtype="<f4")])


def _or_zeros(values: Any, n: int) -> Any:
    return np.zeros(n, dtype=np.float32) if values is None else values


def pack(values: npt.NDArray[Any]) -> str:
    """A column of 4-byte numbers as text."""
    regrouped = np.ascontiguousarray(values).view(np.uint8).reshape(-1, 4).T.tobytes()
    return base64.b64encode(zlib.compress(regrouped, 6)).decode()


def _example(row: Mapping[str, Any], texts: Mapping[str, Any] | None, tokenizer: Any) -> dict[str, Any]:
    start, ids = row["response_start"], row["input_ids"].tolist()
    if texts is None:
        texts = {"question": tokenizer.decode(ids[:start])}
    return {
        "id": row["id"],
        "correct": row["verdict"] == CORRECT,
        "standard": row["logp_standard"] is not None,
        "instruction": texts.get("instruction") or "",
        "question": texts["question"],
        "standard_answer": texts.get("standard_answer"),
        "judgment": texts.get("judgment"),
        "tokens": token_texts(tokenizer, ids[start:]),
    }


def _texts_by_id(examples: Folder | None, ids: set[str]) -> dict[str, dict[str, Any]]:
    """Read no further than the last row that is needed: the table may be far larger than what is shown."""
    texts: dict[str, dict[str, Any]] = {}
    for row in read_rows(examples) if examples is not None and ids else ():
        if row["id"] in ids:
            texts[row["id"]] = {name: row[name] for name in _TEXTS}
            if len(texts) == len(ids):
                break
    return texts
