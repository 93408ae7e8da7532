"""Inputs of the benchmarks of scoring and training: GSM8K questions, answers of real models, and a random Llama."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

VOCABULARY = 32_000
_MERGED = 500  # ids that text really uses: questions of some 110 tokens, as with a common tokenizer and chat markup
_JUDGMENT_TOKENS = 120
SHORT_INSTRUCTION = "Solve the problem step by step and give the result."
LONG_INSTRUCTION_TOKENS = 600

SHAPES: dict[str, dict[str, Any]] = {
    "60M": {
        "hidden_size": 512,
        "intermediate_size": 1376,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 4096,
    },
    "8B": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128_256,
        "max_position_embeddings": 8192,
    },
    "tiny": {  # for a test of the benchmark itself
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 4096,
    },
}


def build_tokenizer(data: Path) -> PreTrainedTokenizerFast:
    """A byte-level BPE trained on GSM8K, filled up to the size of a vocabulary."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_MERGED,
        special_tokens=["<end>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    texts = (row[key] for row in _lines(data / "train.jsonl") for key in ("question", "answer"))
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens([f"<unused {number}>" for number in range(VOCABULARY - tokenizer.get_vocab_size())])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", pad_token="<end>")


def save_inputs(
    folder: Path, data: Path, shape: str, dtype: str, count: int, instruction: str = "short"
) -> tuple[PreTrainedTokenizerFast, list[dict[str, Any]]]:
    """Write a random model with its tokenizer, and rows.json; returns the tokenizer and the rows."""
    tokenizer = build_tokenizer(data)
    save_random_model(folder, shape, getattr(torch, dtype), tokenizer)
    text = instruction_of(data, tokenizer, LONG_INSTRUCTION_TOKENS if instruction == "long" else None)
    rows = build_rows(data, tokenizer, count, text)
    (folder / "rows.json").write_text(json.dumps(rows))
    return tokenizer, rows


def save_random_model(folder: Path, shape: str, dtype: torch.dtype, tokenizer: PreTrainedTokenizerFast) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(**SHAPES[shape], bos_token_id=None, eos_token_id=tokenizer.eos_token_id)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model: Any = LlamaForCausalLM(config)
        model.to(dtype)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def build_rows(data: Path, tokenizer: PreTrainedTokenizerFast, count: int, instruction: str) -> list[dict[str, Any]]:
    """Rows of the examples table, correct and incorrect by turns: questions without such an answer are passed over."""
    rows: list[dict[str, Any]] = []
    for item in _lines(data / "example_model_solutions.jsonl"):
        correct = len(rows) % 2 == 0
        answers = [answer for answer in item.values() if isinstance(answer, dict) and answer["is_correct"] == correct]
        if not answers:
            continue
        solution, truth = answers[0]["solution"], re.sub("<<.*?>>", "", item["ground_truth"])
        rows.append(
            {
                "id": str(len(rows)),
                "instruction": instruction,
                "question": item["question"],
                "standard_answer": truth,
                "response": solution,
                "verdict": "correct" if correct else "incorrect",
                "judgment": None if correct else _judgment(tokenizer, solution, truth),
                "source": "gsm8k",
            }
        )
        if len(rows) == count:
            break
    return rows


def instruction_of(data: Path, tokenizer: PreTrainedTokenizerFast, tokens: int | None) -> str:
    """The short instruction; with `tokens`, followed by solved examples up to that length."""
    if tokens is None:
        return SHORT_INSTRUCTION
    text = SHORT_INSTRUCTION
    for row in _lines(data / "train.jsonl"):
        text += f"\n\nProblem: {row['question']}\nSolution: {row['answer']}"
        if len(tokenizer(text)["input_ids"]) >= tokens:
            break
    return str(tokenizer.decode(tokenizer(text)["input_ids"][:tokens]))


def _judgment(tokenizer: PreTrainedTokenizerFast, solution: str, truth: str) -> str:
    text = (
        f"The response goes wrong where it writes: {solution.splitlines()[0]} A right solution has instead: "
        f"{truth} The response should have read the question more closely before it began to calculate. "
    )
    ids = tokenizer(text * 3)["input_ids"]
    return str(tokenizer.decode(ids[:_JUDGMENT_TOKENS]))


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as stream:
        yield from map(json.loads, stream)
