#!/usr/bin/env python
"""Trains the model that the sandbox embeds, and measures what it can do.

    python -m pipelines.sandbox.train --steps 1800 --output nlft_ray/sandbox/model

About 17 minutes on two free cores. The measurements go to pipelines/sandbox/train.log.md.
"""

import argparse
import logging
import math
import random
import sys
import time
from collections.abc import Iterator
from multiprocessing import Pool
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from nlft_ray.config import PromptConfig
from nlft_ray.models.prompts import PromptKind, prompt_ids, user_message
from nlft_ray.sandbox import MODEL_FOLDER
from nlft_ray.sandbox.arithmetic import Mistake
from nlft_ray.sandbox.tokenizer import build_tokenizer, vocabulary
from nlft_ray.sandbox.world import Problem, problems
from pipelines.sandbox.abilities import RIGHT_JUDGMENT, measure, quickstart_prompts

ROWS_OF_STEP: dict[PromptKind, int] = {"base": 32, "judge": 13, "standard": 13, "ask_judgment": 6}
RIGHT_AMONG_JUDGED = 0.5
"""Share of the judged responses that are right."""
HABIT_AMONG_MISTAKES = 0.4
"""Share of the habit among the mistakes of the judge and judging rows, where the skill has one."""
KIND_WEIGHTS = {"operator": 4, "forgotten": 3, "result": 2}
"""How often the other mistakes are drawn, by kind."""
ROWS_PER_PROBLEM = 2
MAX_LENGTH = 512
LEARNING_RATE, WARMUP_STEPS = 2e-3, 50
LOG = Path(__file__).with_suffix(".log.md")

logger = logging.getLogger("sandbox")


class Text(NamedTuple):
    """One training row before tokenisation."""

    kind: PromptKind
    row: dict[str, str]
    response: str


class Row(NamedTuple):
    """One training row: token ids, the response from `start` on."""

    ids: list[int]
    start: int


# --------------------------------------------------------------------------------------------------- the rows


def draw_mistake(problem: Problem, rng: random.Random) -> Mistake:
    """One of the mistakes that the world knows for a problem, the habit more often than others."""
    if problem.habit is not None and rng.random() < HABIT_AMONG_MISTAKES:
        return problem.habit
    kinds = sorted({mistake.kind for mistake in problem.mistakes})
    kind = rng.choices(kinds, [KIND_WEIGHTS[kind] for kind in kinds])[0]
    return rng.choice([mistake for mistake in problem.mistakes if mistake.kind == kind])


def draw_text(problem: Problem, kind: PromptKind, rng: random.Random) -> Text:
    """The prompt's fields and the response that the model is to learn there."""
    row = {"question": problem.question, "standard_answer": problem.standard_answer}
    if kind == "base":
        by_habit = problem.habit is not None and rng.random() < problem.habit_strength
        return Text(kind, row, problem.habit.response if problem.habit and by_habit else problem.steps)
    if kind == "standard":
        return Text(kind, row, problem.steps)
    mistake = draw_mistake(problem, rng)
    if kind == "judge":
        return Text(kind, {**row, "judgment": mistake.judgment}, mistake.response)
    if rng.random() < RIGHT_AMONG_JUDGED:
        return Text(kind, {**row, "response": problem.steps}, RIGHT_JUDGMENT)
    return Text(kind, {**row, "response": mistake.response}, mistake.judgment)


def draw_texts(steps: int, seed: int) -> list[Text]:
    """The rows of all steps, in order; each step has the mix of ROWS_OF_STEP."""
    rng = random.Random(seed)
    kinds = [kind for _ in range(steps) for kind, rows in ROWS_OF_STEP.items() for _ in range(rows)]
    drawn = list(problems("pretrain", math.ceil(len(kinds) / ROWS_PER_PROBLEM), seed)) * ROWS_PER_PROBLEM
    rng.shuffle(drawn)
    return [draw_text(problem, kind, rng) for problem, kind in zip(drawn, kinds, strict=False)]


class Encoder:
    """Turns texts into rows of token ids; picklable, for a pool of processes."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, prompts: PromptConfig) -> None:
        self.tokenizer, self.prompts = tokenizer, prompts

    def __call__(self, text: Text) -> Row:
        prompt = prompt_ids(self.tokenizer, self.prompts, text.kind, text.row)
        response = self.tokenizer(text.response)["input_ids"]
        return Row([*prompt, *response, self.tokenizer.eos_token_id], len(prompt))


# ----------------------------------------------------------------------------------------------- the training


def build_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A Llama of about 2.2 million parameters, freshly initialised."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=192,
            intermediate_size=512,
            num_hidden_layers=5,
            num_attention_heads=6,
            num_key_value_heads=6,
            max_position_embeddings=MAX_LENGTH,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def learning_rate(step: int, steps: int) -> float:
    """Linear warm-up, then a cosine to a hundredth."""
    if step < WARMUP_STEPS:
        return LEARNING_RATE * (step + 1) / WARMUP_STEPS
    progress = (step - WARMUP_STEPS) / max(1, steps - WARMUP_STEPS)
    return LEARNING_RATE * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))


def buckets(rows: list[Row]) -> Iterator[list[Row]]:
    """A step's rows in two halves by length, which saves padding."""
    ordered = sorted(rows, key=lambda row: len(row.ids))
    yield ordered[: len(ordered) // 2]
    yield ordered[len(ordered) // 2 :]


def response_loss(model: LlamaForCausalLM, rows: list[Row]) -> torch.Tensor:
    """Summed negative log-likelihood of the response tokens. Padding stands right, where causality hides it."""
    length = max(len(row.ids) for row in rows)
    ids = torch.tensor([row.ids + [0] * (length - len(row.ids)) for row in rows])  # (B, T)
    position = torch.arange(1, length)  # of the target
    starts = torch.tensor([[row.start] for row in rows])
    ends = torch.tensor([[len(row.ids)] for row in rows])
    in_response = (position >= starts) & (position < ends)  # (B, T - 1)
    hidden = model.model(input_ids=ids).last_hidden_state[:, :-1]
    return torch.nn.functional.cross_entropy(
        model.lm_head(hidden[in_response]), ids[:, 1:][in_response], reduction="sum"
    )


def train(model: LlamaForCausalLM, rows: list[Row], steps: int) -> None:
    """Plain AdamW over the rows in order, the loss a mean over the step's response tokens."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01)
    rows_per_step, started, losses = sum(ROWS_OF_STEP.values()), time.monotonic(), []
    model.train()
    for step in range(steps):
        batch = rows[step * rows_per_step : (step + 1) * rows_per_step]
        tokens = sum(len(row.ids) - row.start for row in batch)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps)
        for bucket in buckets(batch):
            loss = response_loss(model, bucket) / tokens
            loss.backward()
            losses.append(loss.item())
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if (step + 1) % 50 == 0:
            elapsed = time.monotonic() - started
            left = elapsed / (step + 1) * (steps - step - 1)
            logger.info(
                "step %d/%d  loss %.4f  %.2f s/step  %.1f min left",
                step + 1, steps, sum(losses[-100:]) / 50, elapsed / (step + 1), left / 60,
            )  # fmt: skip


# -------------------------------------------------------------------------------------------------- the whole


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--steps", type=int, default=1800, help="optimizer steps of 64 rows")
    parser.add_argument("--seed", type=int, default=0, help="seed of the rows and of the initialisation")
    parser.add_argument("--output", type=Path, default=MODEL_FOLDER, help="folder of the checkpoint")
    parser.add_argument("--log", type=Path, default=LOG, help="file of the measurements (Markdown)")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.manual_seed(arguments.seed)

    prompts = quickstart_prompts()
    texts = draw_texts(arguments.steps, arguments.seed)
    words = (part for text in texts for part in (user_message(prompts, text.kind, text.row), text.response))
    tokenizer = build_tokenizer(vocabulary(words), MAX_LENGTH)
    with Pool() as pool:
        rows = pool.map(Encoder(tokenizer, prompts), texts, chunksize=500)
    model = build_model(tokenizer)
    logger.info(
        "%d rows, %d tokens; vocabulary of %d; %d parameters",
        len(rows), sum(len(row.ids) for row in rows), len(tokenizer), model.num_parameters(),
    )  # fmt: skip
    started = time.monotonic()
    train(model, rows, arguments.steps)
    minutes = (time.monotonic() - started) / 60
    model.bfloat16().save_pretrained(arguments.output)
    tokenizer.save_pretrained(arguments.output)
    logger.info("checkpoint: %s", arguments.output)

    report = measure(arguments.output, prompts)
    command = " ".join(["python", "-m", "pipelines.sandbox.train", *sys.argv[1:]])
    arguments.log.write_text(f"`{command}`\n\nTrained in {minutes:.1f} minutes.\n\n{report}")
    logger.info("measurements: %s\n%s", arguments.log, report)


if __name__ == "__main__":
    main()
