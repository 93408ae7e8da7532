"""The row contract of every table: Arrow schemas, and what makes a row unusable.

| table       | one row is                                                                                      |
|-------------|-------------------------------------------------------------------------------------------------|
| questions   | a task, with its standard answer where there is one                                             |
| responses   | a question, the target model's response and its verdict; judgments may still be missing         |
| examples    | a response that is correct, or incorrect with a judgment                                        |
| scored      | facts about each token of a response: never a threshold, never a weight                         |
| weighed     | an example's tokens and the policy's weights: within a training, never a stage's input           |
| token_weights | the same for other people's trainers, a weight and a sign for each token                     |
| predictions | a test question, the completion and whether it is right                                         |
| rejects     | a row that a stage could not use, and why                                                       |
"""

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

QUESTIONS = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("instruction", pa.string(), nullable=False),  # system text, may be empty
        pa.field("question", pa.string(), nullable=False),
        pa.field("standard_answer", pa.string()),
    ]
)

EXAMPLES = pa.schema(
    [
        *QUESTIONS,
        pa.field("response", pa.string(), nullable=False),
        pa.field("response_ids", pa.list_(pa.int32())),  # the sampled ids; null where the response came as text
        pa.field("verdict", pa.string(), nullable=False),  # correct | incorrect
        pa.field("judgment", pa.string()),  # null exactly where correct
        pa.field("source", pa.string(), nullable=False),  # who wrote the response
    ]
)
RESPONSES = EXAMPLES  # the same columns; an incorrect response may still wait for its judgment

SCORED = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("verdict", pa.string(), nullable=False),
        pa.field("input_ids", pa.list_(pa.int32()), nullable=False),  # base prompt + the n response tokens
        pa.field("response_start", pa.int32(), nullable=False),
        pa.field("logp_base", pa.list_(pa.float32()), nullable=False),  # n
        pa.field("logp_judge", pa.list_(pa.float32())),  # n; null where correct
        pa.field("logp_standard", pa.list_(pa.float32())),  # n; null without standard answer
        pa.field("top_standard", pa.list_(pa.int32())),  # n: what the standard context would have put there
        pa.field("top_logp_standard", pa.list_(pa.float32())),  # n: and its log-probability
        pa.field("hidden_norm", pa.list_(pa.float32()), nullable=False),  # n: |h[t]|
        pa.field("hidden_cos", pa.list_(pa.float32()), nullable=False),  # n·K: cos(h[t], h[t+1]), …, cos(h[t], h[t+K])
        pa.field("standard_ids", pa.list_(pa.int32())),  # the standard answer's tokens, which `sft` trains
    ]
)

WEIGHED = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("input_ids", pa.list_(pa.int32()), nullable=False),  # base prompt + the n trained tokens
        pa.field("response_start", pa.int32(), nullable=False),
        pa.field("likelihood", pa.list_(pa.float32()), nullable=False),  # n: weights of -log p
        pa.field("unlikelihood", pa.list_(pa.float32()), nullable=False),  # n: weights of -log(1 - p)
        pa.field("anchor", pa.list_(pa.float32()), nullable=False),  # n: the plain likelihood term's part of likelihood
    ]
)

TOKEN_WEIGHTS = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("input_ids", pa.list_(pa.int32()), nullable=False),  # T: base prompt and trained tokens
        pa.field("labels", pa.list_(pa.int32()), nullable=False),  # T: -100 in the prompt, else the token
        pa.field("weights", pa.list_(pa.float32()), nullable=False),  # T: >= 0, the policy's loss_scale in it
        pa.field("signs", pa.list_(pa.int8()), nullable=False),  # T: +1 raises the token, -1 lowers it, 0 neither
    ]
)

PREDICTIONS = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("question", pa.string(), nullable=False),
        pa.field("completion", pa.string(), nullable=False),
        pa.field("answer", pa.string()),  # final answer found in the completion, null where there is none
        pa.field("correct", pa.bool_(), nullable=False),
    ]
)

REJECTS = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("stage", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("row", pa.string(), nullable=False),  # JSON
    ]
)

TABLES: dict[str, pa.Schema] = {
    "questions": QUESTIONS,
    "responses": RESPONSES,
    "examples": EXAMPLES,
    "scored": SCORED,
    "token_weights": TOKEN_WEIGHTS,
    "predictions": PREDICTIONS,
}

CORRECT, INCORRECT = "correct", "incorrect"


def problem_with_question(row: Mapping[str, Any]) -> str | None:
    """Why a row of `questions` cannot be used; None where it can."""
    for column in ("id", "question"):
        if not row.get(column):
            return f"{column} is missing or empty"
    return None


def problem_with_response(row: Mapping[str, Any]) -> str | None:
    """Why a row of `responses` cannot be used; None where it can."""
    problem = problem_with_question(row)
    if problem:
        return problem
    if not row.get("response"):
        return "response is missing or empty"
    if row.get("verdict") not in (CORRECT, INCORRECT):
        return f"verdict is {row.get('verdict')!r}; it must be '{CORRECT}' or '{INCORRECT}'"
    if row["verdict"] == CORRECT and row.get("judgment"):
        return "a correct response has a judgment"
    return None


def problem_with_example(row: Mapping[str, Any]) -> str | None:
    """Why a row of `examples` cannot be used; None where it can."""
    problem = problem_with_response(row)
    if problem is None and row["verdict"] == INCORRECT and not row.get("judgment"):
        return "an incorrect response without a judgment"
    return problem
