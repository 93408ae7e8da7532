"""Passes over rows of any length: memory is linear in a response, budgets hold, and the host waits for nothing."""

import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import nlft_ray
from nlft_ray.errors import UserError
from nlft_ray.execution.work import isolate_failures
from nlft_ray.models.attention import attend_by_segments
from nlft_ray.stages.score import worker as score_worker
from nlft_ray.stages.score.contexts import ScoringRow
from nlft_ray.stages.score.scorer import RowFacts, Scorer, ScoringBatch
from nlft_ray.stages.score.worker import ScoreWorker
from nlft_ray.stages.train.examples import Example, MicroBatch
from nlft_ray.tables.schema import EXAMPLES
from tests.models.test_abilities import random_model
from tests.random_models import save_random_model
from tests.rows import example, write_table
from tests.stages.test_score import EXAMPLE_ROWS, INLINE, config, score, score_with

LONG = 16_000
ONE_LAYER = {"num_hidden_layers": 1, "max_position_embeddings": 2 * LONG}
SMALL = {"intermediate_size": 16, "num_key_value_heads": 1, "head_dim": 8}
LONG_TEXTS: dict[str, dict[str, Any]] = {
    "llama": SMALL,
    "mistral": SMALL | {"sliding_window": 500},
    "gemma2": SMALL | {"sliding_window": 500, "layer_types": ["full_attention"], "final_logit_softcapping": 4.0},
}
"""Kinds of attention: plain, through windows, eager with caps."""


class Operations(TorchDispatchMode):
    """The names of all that runs within, and the bytes of the largest storage that it makes."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()
        self.most_bytes = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        by_mask = str(function) == "aten.index.Tensor" and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        self.names["index by a mask" if by_mask else str(function)] += 1
        made = function(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else [made]:
            if isinstance(tensor, torch.Tensor):
                self.most_bytes = max(self.most_bytes, tensor.untyped_storage().nbytes())
        return made


def scorer_of(kind: str, shape: dict[str, Any], max_tokens: int | None = None) -> Scorer:
    return Scorer(random_model(kind, shape), pad_id=0, max_tokens_per_batch=max_tokens, hidden_window=8)


def row(n: int, prompts: dict[Any, list[int]], name: str = "row") -> ScoringRow:
    verdict = "incorrect" if "judge" in prompts else "correct"
    return ScoringRow(name, verdict, prompts, [(7 * t) % 60 + 1 for t in range(n)], None)


def prompts_of(question: int, beside: int = 5, instruction: int = 0) -> dict[Any, list[int]]:
    shared = [1] * instruction + [t % 50 + 2 for t in range(question)]
    return {context: [*shared, *[number] * beside] for number, context in enumerate(["base", "judge", "standard"], 1)}


def facts_of_all(scorer: Scorer, rows: list[ScoringRow]) -> list[RowFacts]:
    return [facts for batch in scorer.batches(rows) for facts in scorer.launch(batch)()]


@pytest.mark.parametrize("kind", LONG_TEXTS)
def test_memory_is_linear_in_a_response(kind: str) -> None:
    """Beside it a short row, so that whatever makes texts share a pass may do so."""
    scorer = scorer_of(kind, LONG_TEXTS[kind] | ONE_LAYER)
    assert scorer.packs()
    rows = [row(LONG, prompts_of(30)), row(20, prompts_of(30), "short")]
    tracemalloc.start()
    try:
        with Operations() as operations:
            facts = facts_of_all(scorer, rows)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert [len(found["judge"].logp) for found in facts] == [LONG, 20]
    assert operations.most_bytes < LONG * 2400, "a mask of all of its tokens has 16,000 bytes for each"
    assert peak < LONG * 2400, "what Python and numpy hold"


@pytest.mark.parametrize("kind", ["llama", "mistral"])
def test_memory_is_linear_in_what_is_trained(kind: str) -> None:
    """Two responses behind one prompt, forward and backward."""
    model = random_model(kind, LONG_TEXTS[kind] | ONE_LAYER)
    assert attend_by_segments(model)
    ones = np.ones(LONG, np.float32)
    ids = [np.array([3] * 30 + [t % 40 + number for t in range(LONG)], np.int32) for number in (1, 2)]
    batch = MicroBatch.of([Example("", one, 30, ones, 0 * ones, ones) for one in ids], 0, packed=True)
    saved: list[int] = []

    def save(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(tensor.untyped_storage().nbytes())
        return tensor

    with Operations() as operations, torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        model.base_model(**batch.inputs).last_hidden_state.sum().backward()
    assert max(operations.most_bytes, *saved) < LONG * 2400


@pytest.mark.parametrize("kind", ["llama", "gemma2"])
@pytest.mark.parametrize("instruction", [0, 40])
def test_a_row_above_the_budget_runs_in_passes(kind: str, instruction: int) -> None:
    shape = LONG_TEXTS[kind] | {"max_position_embeddings": 1024, "num_hidden_layers": 1}
    rows = [row(30, prompts_of(20, instruction=instruction), "a")]
    rows += [row(90, prompts_of(60, instruction=instruction), "b"), row(1, prompts_of(17, 1, instruction), "c")]
    whole, parts = scorer_of(kind, shape, 2000), scorer_of(kind, shape, 215)
    wanted = facts_of_all(whole, rows)
    batches = parts.batches(rows)
    sizes: list[int] = []
    parts._model.base_model.register_forward_pre_hook(
        lambda _module, _inputs, named: sizes.append(named["input_ids"].numel()), with_kwargs=True
    )
    found = [facts for batch in batches for facts in parts.launch(batch)()]
    assert max(sizes) <= 215
    assert [len(batch.forests) for batch in batches] == [1, 2, 1], "judge and standard fit into one pass"
    prefixes = {tuple(prefix) for batch in batches for prefix in batch.prefixes.values()}
    assert sum(sizes) == sum(batch.tokens for batch in batches) + sum(map(len, prefixes))
    for one, other in zip(found, wanted, strict=True):
        assert one.keys() == other.keys()
        for context, values in one.items():
            for name, value in vars(values).items():
                if value is None:
                    assert getattr(other[context], name) is None
                else:
                    np.testing.assert_allclose(value, getattr(other[context], name), atol=1e-5, rtol=1e-5)


def test_a_question_that_outweighs_what_precedes_it_runs_once() -> None:
    scorer = scorer_of("llama", SMALL | {"max_position_embeddings": 1024}, 100)
    (batch,) = scorer.batches([row(60, prompts_of(90))])
    assert len(batch.forests) == 3
    assert all(len(forest[0].trunk) <= 1 for forest in batch.forests)
    assert len(batch.prefixes["base"]) >= 89
    together = scorer.batches([row(60, prompts_of(20, instruction=90)), row(9, prompts_of(30, 6, instruction=90))])
    assert len(together[0].prefixes["base"]) == len(together[1].prefixes["base"]) >= 90, "the instruction runs once"


@pytest.mark.parametrize("kind", ["llama", "mistral", "gemma2", "qwen2"])
def test_a_launch_waits_for_nothing(kind: str) -> None:
    """Whatever would have the host ask a GPU for a number, for a size or for a copy."""
    scorer = scorer_of(kind, SMALL | {"max_position_embeddings": 1024})
    batches = scorer.batches([row(40, prompts_of(20), "a"), row(7, prompts_of(30), "b")])
    assert len(batches) == 1
    with Operations() as operations:
        read = scorer.launch(batches[0])
    waits = [
        "aten._local_scalar_dense.default",
        "aten.nonzero.default",
        "index by a mask",
        "aten.masked_select.default",
    ]
    assert {name: operations.names[name] for name in waits} == dict.fromkeys(waits, 0)
    with Operations() as reading:
        facts = read()
    assert set(reading.names) <= {"aten.slice.Tensor", "aten.view.default", "aten.view.dtype", "aten.detach.default"}
    assert [len(found["base"].logp) for found in facts] == [40, 7]


@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_batches_are_launched_ahead_and_come_in_order(
    random_llama: str, ahead: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(score_worker, "ROWS_AT_ONCE", 4)
    worker = ScoreWorker(config(random_llama, max_tokens_per_batch=1))
    rows = [dict.fromkeys(EXAMPLES.names) | example(f"{number}", correct=number % 3 == 0) for number in range(10)]
    table = pa.Table.from_pylist(rows, schema=EXAMPLES)
    wanted = worker(table, 0).table
    course: list[str] = []
    launch = worker._scorer.launch

    def noted(batch: ScoringBatch) -> Any:
        course.append("launched")
        read = launch(batch)

        def reading() -> Any:
            course.append("read")
            return read()

        return reading

    worker._scorer.ahead = ahead
    worker._scorer.launch = noted  # type: ignore[method-assign]
    assert worker(table, 0).table.equals(wanted)
    first = course.index("read")
    assert course[:first] == ["launched"] * (ahead + 1)
    assert course[first : len(course) - ahead] == ["read", "launched"] * (9 - ahead) + ["read"]


def test_a_row_that_no_tokenizer_takes_is_named(random_llama: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It raises in the thread that prepares rows while the model runs."""
    monkeypatch.setattr(score_worker, "ROWS_AT_ONCE", 2)
    worker = ScoreWorker(config(random_llama))
    build = worker._build

    def strict(row: Any) -> Any:
        if row["id"] == "4":
            raise ValueError("no ids for this")
        return build(row)

    worker._build = strict  # type: ignore[assignment]
    rows = [dict.fromkeys(EXAMPLES.names) | example(f"{number}", correct=True) for number in range(7)]
    worked = isolate_failures(worker, pa.Table.from_pylist(rows, schema=EXAMPLES), 0)
    assert [(row["id"], reason) for row, reason in worked.rejects] == [("4", "raised ValueError: no ids for this")]
    assert worked.table["id"].to_pylist() == ["0", "1", "2", "3", "5", "6"]
    assert worked.counts["correct"] == 6


@pytest.mark.parametrize("architecture", ["llama", "opt"])
@pytest.mark.parametrize("room", [600, 300])
def test_memory_that_runs_out_costs_no_row(
    architecture: str, room: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """However little fits at once: two rows, or one context of one row. `opt` is padded, `llama` packed."""
    model = save_random_model(tmp_path, architecture)
    whole, _ = score(config(model), EXAMPLE_ROWS)
    worker, run = ScoreWorker(config(model)), Scorer._run

    def run_if_it_fits(scorer: Scorer, forward_pass: Any) -> Any:
        if forward_pass.inputs["input_ids"].numel() > room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")
        return run(scorer, forward_pass)

    monkeypatch.setattr(Scorer, "_run", run_if_it_fits)
    found, worked = score_with(worker, EXAMPLE_ROWS)
    assert worked.rejects == []
    assert found.keys() == whole.keys()
    for id, row in whole.items():
        for name in ("logp_base", "logp_judge", "logp_standard", "hidden_norm", "hidden_cos"):
            if row[name] is not None:
                np.testing.assert_allclose(found[id][name], row[name], atol=1e-5)
    assert "out of memory with" in capsys.readouterr().err


def test_a_row_that_does_not_fit_alone_ends_with_advice(
    random_llama: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(scorer: Scorer, forward_pass: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Scorer, "_run", fail)
    source = write_table(tmp_path / "examples", "examples", EXAMPLE_ROWS)
    settings = config(random_llama, input=source, output=str(tmp_path / "scored"), pool=INLINE)
    with pytest.raises(UserError, match=r"alone, of \d+ tokens .* Lower model.max_length"):
        nlft_ray.score(settings)
    assert not (tmp_path / "scored" / "manifest.json").exists()


def test_ids_that_the_model_has_not_are_a_bad_row(random_llama: str) -> None:
    found, worked = score(
        config(random_llama), [EXAMPLE_ROWS[0], example("odd", correct=True, response_ids=[5, 999_999])]
    )
    assert list(found) == ["right"]
    assert [reason for _, reason in worked.rejects] == ["unknown token: id 999999, where the model knows 261 of them"]


def test_rows_that_raised_are_tried_again_by_the_next_start(
    random_llama: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_table(tmp_path / "examples", "examples", EXAMPLE_ROWS)
    settings = config(random_llama, input=source, output=str(tmp_path / "scored"), pool=INLINE, max_reject_fraction=1)

    def fail(scorer: Scorer, forward_pass: Any) -> Any:
        raise RuntimeError("a bug of today")

    with monkeypatch.context() as broken:
        broken.setattr(Scorer, "_run", fail)
        assert nlft_ray.score(settings).manifest.reject_reasons == {"raised RuntimeError": len(EXAMPLE_ROWS)}
    again = nlft_ray.score(settings)
    assert (again.manifest.rows_out, again.manifest.rows_rejected) == (len(EXAMPLE_ROWS), 0)
    assert f"{len(EXAMPLE_ROWS)} rows are tried again" in capsys.readouterr().err
    assert nlft_ray.score(settings).reused
