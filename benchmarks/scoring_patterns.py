"""Ways of scoring the same rows. Each runs in a process of its own and says what it took.

ours      this project's ScoreWorker, in process.
harness   lm-evaluation-harness: `HFLM.loglikelihood`, a request for each context of each row.
released  the pattern of the method's first release: an example at a time, its three contexts in a padded batch (a
          correct response has its base context twice), a float32 softmax over all positions, growing in a Python
          loop that reads a tensor for each neighbour. No gradient.

vLLM's is in `vllm_pattern.py`, which another environment runs.
"""

import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from harness import matmul_rate, peak, reset_peak, synchronise, table_of
from released_pattern import grow, released_facts

from nlft_ray.config import ScoreConfig
from nlft_ray.models.loading import load_model, load_tokenizer
from nlft_ray.stages.score.contexts import RowBuilder, ScoringRow
from nlft_ray.stages.score.worker import ScoreWorker
from nlft_ray.tables.schema import EXAMPLES

Measure = dict[str, Any]
_WARM_UP_ROWS = 4
_HARNESS_BATCH_SIZES = (1, 2, 4, 8, 16)  # more only pads more
_TRIAL_REQUESTS = 16


def run_pattern(pattern: str, folder: Path, dtype: str, threads: int, options: dict[str, Any]) -> Measure:
    """Measure one pattern on `folder` (model, rows.json): seconds, peak memory, base log-probability of each row."""
    torch.set_num_threads(threads)
    config = ScoreConfig.model_validate(
        {"input": "-", "output": "-", "model": {"path": str(folder), "dtype": dtype}, **options.get("score", {})}
    )
    rows = json.loads((folder / "rows.json").read_text())
    with torch.inference_mode():
        return PATTERNS[pattern](config, rows, options)


def _measure(work: Callable[[], Iterable[float]], warm_up: Callable[[], object], model: torch.nn.Module) -> Measure:
    """Run after a warm-up, with memory counted from the state in which the model stands loaded."""
    for parameter in model.parameters():
        parameter.sum()  # weights may be mapped from the file: read them, so that they do not count as work
    start = reset_peak()
    warm_up()
    synchronise()
    began, cpu_began = time.perf_counter(), time.process_time()
    base_logp = list(work())
    synchronise()
    return {
        "seconds": time.perf_counter() - began,
        "cpu_seconds": time.process_time() - cpu_began,
        "peak_bytes": peak() - start,
        "base_logp": base_logp,
    }


def _ours(config: ScoreConfig, rows: list[dict[str, Any]], options: dict[str, Any]) -> Measure:
    worker = ScoreWorker(config)
    model = worker._scorer._model
    table, few = (table_of(part, EXAMPLES) for part in (rows, rows[:_WARM_UP_ROWS]))
    count = _count_work(model)

    def work() -> Iterable[float]:
        count.clear()
        result = worker(table, seed=0)
        assert not result.rejects, result.rejects[0][1]
        return [sum(row) / len(row) for row in result.table["logp_base"].to_pylist()]

    measure = _measure(work, lambda: worker(few, seed=0), model)
    measure["tokens"] = sum(sum(row.lengths().values()) for row in _scoring_rows(config, rows))
    return measure | count | _sizes(model) | {"matmul_flops": matmul_rate(model.dtype, model.device)}


def _harness(config: ScoreConfig, rows: list[dict[str, Any]], options: dict[str, Any]) -> Measure:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    class ApartHFLM(HFLM):
        """Prompt and response tokenised apart, as everywhere here: the same ids in all three patterns."""

        def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
            return self.tok_encode(context), self.tok_encode(continuation)

    model, tokenizer = load_model(config.model), load_tokenizer(config.model)
    end = tokenizer.eos_token
    requests = [
        (row.id, context, Instance("loglikelihood", {}, (tokenizer.decode(prompt), f"{response}{end}"), 0))
        for row, response in zip(_scoring_rows(config, rows), (row["response"] for row in rows), strict=True)
        for context, prompt in row.prompts.items()
    ]

    def run(batch_size: int, some: int | None = None) -> list[float]:
        harness = ApartHFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, max_length=4096)
        answers = harness.loglikelihood([request for _, _, request in requests[:some]], disable_tqdm=True)
        return [
            logp / len(tokenizer(request.args[1])["input_ids"])
            for (_, context, request), (logp, _) in zip(requests, answers, strict=False)
            if context == "base"
        ]

    def seconds(batch_size: int) -> float:
        began = time.perf_counter()
        run(batch_size, _TRIAL_REQUESTS)
        return time.perf_counter() - began

    if "batch_size" not in options:  # the trial, which is a process of its own
        run(1, 2)
        return {"trials": {size: seconds(size) for size in _HARNESS_BATCH_SIZES}}
    size = options["batch_size"]
    return _measure(lambda: run(size), lambda: run(size, _WARM_UP_ROWS), model) | {"batch_size": size}


def _released(config: ScoreConfig, rows: list[dict[str, Any]], options: dict[str, Any]) -> Measure:
    model = load_model(config.model)
    scoring_rows = _scoring_rows(config, rows)
    return _measure(
        lambda: [_released_example(model, row) for row in scoring_rows],
        lambda: [_released_example(model, row) for row in scoring_rows[:_WARM_UP_ROWS]],
        model,
    )


def _released_example(model: Any, row: ScoringRow) -> float:
    """Score an example; returns the mean log-probability of its response in the base context."""
    facts = released_facts(model, row)
    grow(facts.hidden, facts.salient.nonzero()[:, 0].tolist())
    return float(facts.p_base.log().mean())


PATTERNS: dict[str, Callable[[ScoreConfig, list[dict[str, Any]], dict[str, Any]], Measure]] = {
    "ours": _ours,
    "harness": _harness,
    "released": _released,
}


def _scoring_rows(config: ScoreConfig, rows: list[dict[str, Any]]) -> list[ScoringRow]:
    tokenizer = load_tokenizer(config.model)
    build = RowBuilder(tokenizer, config.prompts, tokenizer.eos_token_id)
    return [build(row) for row in table_of(rows, EXAMPLES).to_pylist()]


def save_requests(folder: Path) -> None:
    """Write requests.json for `vllm_pattern.py`: every context of the rows in rows.json, as token ids."""
    config = ScoreConfig.model_validate({"input": "-", "output": "-", "model": {"path": str(folder)}})
    requests = [
        {"id": row.id, "context": name, "ids": [*prompt, *row.response_ids], "response_start": len(prompt)}
        for row in _scoring_rows(config, json.loads((folder / "rows.json").read_text()))
        for name, prompt in row.prompts.items()
    ]
    (folder / "requests.json").write_text(json.dumps(requests))


def _count_work(model: Any) -> dict[str, int]:
    """Counts, while the model runs: tokens run, padding among them, positions of the head, FLOPs of attention."""
    count: dict[str, int] = {}
    shape = model.config
    per_pair = 4 * shape.num_hidden_layers * shape.hidden_size  # scores and sums, of the pairs that causality allows

    def add(**amounts: int) -> None:
        for name, amount in amounts.items():
            count[name] = count.get(name, 0) + amount

    def on_model(_module: Any, _inputs: Any, named: dict[str, Any]) -> None:
        rows, tokens = named["input_ids"].shape
        ends = named["input_ids"].flip(1) == shape.eos_token_id  # what pads, too; one of a row's own may end it
        padding = int((ends.long().cumprod(1).sum(1) - 1).clamp_min(0).sum())
        states, segments = named.get("past_key_values"), named.get("segments")
        stored = states.get_seq_length() if states is not None else 0
        if segments is None:
            pairs = rows * (tokens * stored + tokens * (tokens + 1) // 2)
        else:
            spans = [(s.own.stop - s.own.start, sum(read.stop - read.start for read in s.reads)) for s in segments]
            pairs = sum(own * (seen - own) + own * (own + 1) // 2 for own, seen in spans)
        add(tokens_run=rows * tokens, padding=padding, attention_flops=per_pair * pairs)

    model.base_model.register_forward_pre_hook(on_model, with_kwargs=True)
    model.get_output_embeddings().register_forward_pre_hook(
        lambda _module, inputs: add(head_positions=inputs[0].numel() // shape.hidden_size)
    )
    return count


def _sizes(model: Any) -> dict[str, int]:
    head = model.get_output_embeddings().weight.numel()
    embeddings = model.get_input_embeddings().weight.numel()
    body = sum(parameter.numel() for parameter in model.parameters()) - head - embeddings
    return {"body_parameters": body, "head_parameters": head}
