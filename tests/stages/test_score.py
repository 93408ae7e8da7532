"""Scoring: the facts are those of a plain forward pass, for every architecture, batch and context."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import AutoModelForCausalLM

import nlft_ray
from nlft_ray.config import ModelConfig, PromptConfig, ScoreConfig
from nlft_ray.errors import UserError
from nlft_ray.models.loading import load_model, load_tokenizer
from nlft_ray.models.prompts import prompt_ids
from nlft_ray.stages.score.scorer import fill, pack
from nlft_ray.stages.score.worker import ScoreWorker
from nlft_ray.tables.manifest import Identity
from nlft_ray.tables.schema import EXAMPLES, SCORED
from nlft_ray.tables.scored import facts_of
from nlft_ray.tables.shards import UNFINISHED
from tests.random_models import ARCHITECTURES, save_random_model
from tests.rows import example, read_rejects, read_table, write_table

INLINE = {"backend": "inline"}
EXAMPLE_ROWS = [
    example("right", correct=True),
    example("wrong", correct=False),
    example("long", correct=False, response="2 + 2, let me see: one, two, three, four, five. " * 3 + "#### 5"),
    example("grüße 🙂", correct=True, response="vier 🙂\n#### 4", question="Wie viel ist 2 + 2?", instruction="Knapp."),
    example("open", correct=False, standard_answer=None),
    example("sampled", correct=True, response="2", response_ids=[55, 1]),
]


def config(model: str, **changes: Any) -> ScoreConfig:
    return ScoreConfig.model_validate({"input": "i", "output": "o", "model": {"path": model}, **changes})


def score(config: ScoreConfig, rows: list[dict[str, Any]]) -> tuple[dict[str, dict[str, Any]], Any]:
    return score_with(ScoreWorker(config), rows)


def score_with(worker: ScoreWorker, rows: list[dict[str, Any]]) -> tuple[dict[str, dict[str, Any]], Any]:
    full = [dict.fromkeys(EXAMPLES.names) | row for row in rows]
    worked = worker(pa.Table.from_pylist(full, schema=EXAMPLES), seed=0)
    assert worked.table.schema.equals(SCORED)
    return {row["id"]: row for row in worked.table.to_pylist()}, worked


def plain_facts(model: Any, prompt: list[int], response: list[int]) -> tuple[Any, Any, Any]:
    """Log-probabilities, greatest log-probabilities and hidden states by the shortest code there is: one row, no
    padding, the whole softmax in double precision."""
    with torch.inference_mode():
        output = model(torch.tensor([prompt + response]), output_hidden_states=True)
    logp = output.logits[0].double().log_softmax(-1)
    at = torch.arange(len(prompt) - 1, len(prompt) + len(response) - 1)
    return logp[at, torch.tensor(response)].numpy(), logp[at].max(-1), output.hidden_states[-1][0, at].double()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("max_tokens_per_batch", [1, 700, 8192])
def test_facts_are_those_of_a_plain_forward_pass(tmp_path: Path, architecture: str, max_tokens_per_batch: int) -> None:
    path = save_random_model(tmp_path, architecture)
    scored, worked = score(config(path, max_tokens_per_batch=max_tokens_per_batch), EXAMPLE_ROWS)
    assert worked.rejects == []
    model, tokenizer = load_model(ModelConfig(path=path)), load_tokenizer(ModelConfig(path=path))
    for row in EXAMPLE_ROWS:
        found = scored[row["id"]]
        response = row.get("response_ids") or [*tokenizer(row["response"])["input_ids"], tokenizer.eos_token_id]
        base = prompt_ids(tokenizer, PromptConfig(), "base", row)
        assert found["input_ids"] == base + response
        assert found["response_start"] == len(base)
        logp, _, hidden = plain_facts(model, base, response)
        np.testing.assert_allclose(found["logp_base"], logp, atol=1e-4)
        np.testing.assert_allclose(found["hidden_norm"], hidden.norm(dim=-1), rtol=1e-4)
        cosines = np.asarray(found["hidden_cos"]).reshape(len(response), 8)
        unit = (hidden / hidden.norm(dim=-1, keepdim=True)).numpy()
        for t in range(len(response)):
            for k in range(8):
                wanted = unit[t] @ unit[t + k + 1] if t + k + 1 < len(response) else 0.0
                assert cosines[t, k] == pytest.approx(wanted, abs=1e-4)
        if row["verdict"] == "incorrect":
            judge = prompt_ids(tokenizer, PromptConfig(), "judge", row)
            np.testing.assert_allclose(found["logp_judge"], plain_facts(model, judge, response)[0], atol=1e-4)
        else:
            assert found["logp_judge"] is None
        if row["standard_answer"]:
            standard = prompt_ids(tokenizer, PromptConfig(), "standard", row)
            logp, (top_logp, top), _ = plain_facts(model, standard, response)
            np.testing.assert_allclose(found["logp_standard"], logp, atol=1e-4)
            np.testing.assert_allclose(found["top_logp_standard"], top_logp, atol=1e-4)
            assert found["top_standard"] == top.tolist()
            assert found["standard_ids"] == [*tokenizer(row["standard_answer"])["input_ids"], tokenizer.eos_token_id]
        else:
            assert found["logp_standard"] is found["top_standard"] is found["standard_ids"] is None
        assert facts_of(found).n == len(response)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_shared_prefix_runs_once_and_changes_nothing(
    tmp_path: Path, architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save_random_model(tmp_path, architecture)
    instruction = "Answer like these. 1 + 1? #### 2. 2 + 3? #### 5. " * 3
    rows = [row | {"instruction": instruction, "response_ids": None} for row in EXAMPLE_ROWS]
    shared, _ = score(config(path), rows)
    from_the_start: list[bool] = []
    tokens: list[int] = []
    worker = ScoreWorker(config(path, max_tokens_per_batch=1024))

    def note(_module: Any, _inputs: Any, named: dict[str, Any]) -> None:
        stored = named.get("past_key_values")
        from_the_start.append(stored is None or stored.get_seq_length() == 0)
        tokens.append(named["input_ids"].numel())

    worker._scorer._model.base_model.register_forward_pre_hook(note, with_kwargs=True)
    full = [dict.fromkeys(EXAMPLES.names) | row for row in rows]
    worked = worker(pa.Table.from_pylist(full, schema=EXAMPLES), 0)
    assert sum(from_the_start) == 1, "the prefix"
    assert len(from_the_start) == 1 + 3, "and the rows, in three batches of up to 1024 tokens"
    assert worked.counts["tokens_run"] == sum(tokens)
    monkeypatch.setattr("nlft_ray.stages.score.scorer.start_packing", lambda model: False)
    padded, _ = score(config(path), rows)
    monkeypatch.setattr("nlft_ray.stages.score.scorer._common_prefix", lambda prompts: [])
    plain, _ = score(config(path), rows)
    for id, row in plain.items():
        for column in ("logp_base", "logp_judge", "logp_standard", "top_logp_standard", "hidden_norm", "hidden_cos"):
            for found in (shared, padded):
                if row[column] is None:
                    assert found[id][column] is None
                else:
                    np.testing.assert_allclose(found[id][column], row[column], atol=1e-5, rtol=1e-5, err_msg=column)


def test_a_model_in_parts_scores_the_same(random_llama: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As over several GPUs, but for where the parts are: accelerate brings states and weights of each together."""
    whole, _ = score(config(random_llama), EXAMPLE_ROWS)
    places = {"model.embed_tokens": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu", "model.norm": "disk"}
    places |= {"model.layers.0": "disk", "model.layers.1": "cpu"}

    def load_in_parts(model: ModelConfig, *, spread: bool, tensor_parallel: int) -> Any:
        assert spread
        return AutoModelForCausalLM.from_pretrained(
            model.path, dtype=torch.float32, device_map=places, offload_folder=tmp_path
        ).eval()

    monkeypatch.setattr("nlft_ray.stages.score.worker.load_model", load_in_parts)
    in_parts, _ = score(config(random_llama), EXAMPLE_ROWS)
    for id, row in whole.items():
        for column in ("logp_base", "logp_judge", "logp_standard", "hidden_norm", "hidden_cos"):
            if row[column] is not None:
                np.testing.assert_allclose(in_parts[id][column], row[column], atol=1e-5, rtol=1e-5, err_msg=column)


def test_contexts_and_their_tokens_are_counted(random_llama: str) -> None:
    scored, worked = score(config(random_llama), EXAMPLE_ROWS)
    # correct: base + standard; incorrect: base + judge + standard; without a standard answer one fewer
    assert worked.counts["contexts"] == 3 * 2 + 2 * 3 + 1 * 2
    logp = [row[name] for row in scored.values() for name in ("logp_base", "logp_judge", "logp_standard")]
    assert worked.counts["tokens_scored"] == sum(len(values) for values in logp if values is not None)
    assert worked.counts["without_standard_answer"] == 1


def test_the_head_runs_at_response_positions_only(random_llama: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    worker = ScoreWorker(config(random_llama))
    head = worker._scorer._model.get_output_embeddings()
    head.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0].numel() // 32))
    rows = [dict.fromkeys(EXAMPLES.names) | row for row in EXAMPLE_ROWS]
    scored = worker(pa.Table.from_pylist(rows, schema=EXAMPLES), 0).table.to_pylist()
    tokens = [len(row["logp_base"]) for row in scored]
    judged = [len(row["logp_judge"] or []) for row in scored]
    standard = [len(row["logp_standard"] or []) for row in scored]
    assert sum(seen) == sum(tokens) + sum(judged) + sum(standard)


def test_a_quantised_model_scores(random_llama: str) -> None:
    whole, _ = score(config(random_llama), EXAMPLE_ROWS)
    settings = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    model = ModelConfig(path=random_llama, quantization=settings)
    quantised, worked = score(config(random_llama).model_copy(update={"model": model}), EXAMPLE_ROWS)
    assert worked.rejects == []
    apart = [abs(np.subtract(quantised[id]["logp_base"], row["logp_base"])).mean() for id, row in whole.items()]
    assert 0 < max(apart) < 0.3


def test_unusable_rows_are_rejected_with_the_reason(random_llama: str) -> None:
    rows = [
        example("fine", correct=True),
        example("unjudged", correct=False, judgment=None),
        example("empty", correct=True, response=""),
        example("verdict", correct=True, verdict="maybe"),
        example("praised", correct=True, judgment="well done"),
        example("endless", correct=True, response="2 + 2 " * 200),
    ]
    scored, worked = score(config(random_llama), rows)
    assert list(scored) == ["fine"]
    reasons = {row["id"]: reason for row, reason in worked.rejects}
    assert reasons["unjudged"] == "an incorrect response without a judgment"
    assert reasons["empty"] == "response is missing or empty"
    assert "maybe" in reasons["verdict"]
    assert reasons["praised"] == "a correct response has a judgment"
    assert reasons["endless"].startswith("too long: base 1")
    assert reasons["endless"].endswith("the model takes 512")


def test_truncation_is_done_when_asked_for_and_counted(random_llama: str) -> None:
    rows = [example("endless", correct=True, response="2 + 2 " * 200), example("fine", correct=True)]
    scored, worked = score(config(random_llama, too_long="truncate"), rows)
    assert worked.counts["truncated"] == 1
    n = len(scored["endless"]["logp_base"])
    assert n == len(scored["endless"]["logp_standard"])
    assert scored["endless"]["response_start"] + n < 512, "the longest context decides"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_contexts_run_as_a_tree_where_the_model_takes_it(
    tmp_path: Path, architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save_random_model(tmp_path, architecture)
    runs: list[int] = []

    def worker() -> ScoreWorker:
        made = ScoreWorker(config(path))
        made._scorer._model.base_model.register_forward_pre_hook(
            lambda _module, _inputs, named: runs.append(named["input_ids"].numel()), with_kwargs=True
        )
        return made

    full = pa.Table.from_pylist([dict.fromkeys(EXAMPLES.names) | row for row in EXAMPLE_ROWS], schema=EXAMPLES)
    trees = worker()(full, 0)
    in_trees = sum(runs)
    runs.clear()
    monkeypatch.setattr("nlft_ray.stages.score.scorer.start_packing", lambda model: False)
    padded = worker()(full, 0)
    assert in_trees < 0.85 * sum(runs), "the questions run once"
    assert trees.tokens == trees.counts["tokens_run"] == in_trees
    assert 0 < padded.tokens < sum(runs), "padding is not counted"
    assert "padded_contexts" not in trees.counts
    assert padded.counts["padded_contexts"] == padded.counts["contexts"]
    for with_trees, plain in zip(trees.table.to_pylist(), padded.table.to_pylist(), strict=True):
        for column in ("logp_base", "logp_judge", "logp_standard", "top_logp_standard", "hidden_norm", "hidden_cos"):
            if plain[column] is not None:
                np.testing.assert_allclose(with_trees[column], plain[column], atol=1e-5, rtol=1e-5, err_msg=column)


@pytest.mark.parametrize("budget", [1, 50, 1000])
def test_batches_hold_every_row_once_within_the_budget(budget: int) -> None:
    sizes = [5, 100, 7, 30, 30, 31, 1, 2, 80]
    batches = pack(sizes, budget)
    assert sorted(index for batch in batches for index in batch) == list(range(len(sizes)))
    assert all(len(batch) == 1 or len(batch) * max(sizes[index] for index in batch) <= budget for batch in batches)


def test_the_stage_scores_resumes_and_is_not_run_twice(tmp_path: Path, random_llama: str) -> None:
    rows = [example(str(number), correct=number % 2 == 0) for number in range(60)]
    source = write_table(tmp_path / "examples", "examples", rows)
    settings = {"input": source, "model": {"path": random_llama}, "pool": INLINE}
    whole = nlft_ray.score(ScoreConfig.model_validate({**settings, "output": str(tmp_path / "a")}))
    assert (whole.manifest.rows_in, whole.manifest.rows_out, whole.reused) == (60, 60, False)
    assert whole.manifest.identity.config["model"]["dtype"] == "float32", "what auto is without a GPU"
    again = ScoreConfig.model_validate({**settings, "output": str(tmp_path / "a")})
    assert nlft_ray.score(again).reused
    parts = sorted((tmp_path / "a" / "data").iterdir())
    assert len(parts) == 4
    kept = parts[0].stat().st_mtime_ns
    parts[1].unlink()
    parts[2].write_bytes(b"half a file")
    (tmp_path / "a" / "manifest.json").unlink()
    (tmp_path / "a" / UNFINISHED / "of a killed actor").mkdir(parents=True)
    before = read_table_of(parts[3])
    assert nlft_ray.score(again).manifest.rows_out == 60
    assert parts[0].stat().st_mtime_ns == kept, "finished work is not done again"
    assert read_table_of(parts[3]) == before
    assert not (tmp_path / "a" / UNFINISHED).exists()
    assert set(read_table(tmp_path / "a")) == {row["id"] for row in rows}
    with pytest.raises(UserError, match="hidden_window: 8 → 4"):
        nlft_ray.score(again.model_copy(update={"hidden_window": 4}))


@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
def test_what_was_begun_goes_on_in_its_type(
    tmp_path: Path, random_llama: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A table of before, whose identity says auto, and one that was begun where there are GPUs."""

    def begun_as(folder: Any, identity: Identity, **_: Any) -> Identity:
        return identity.model_copy(update={"config": identity.config | {"model": identity.config["model"] | known}})

    known = {"dtype": dtype, "attention": "sdpa"}
    rows = [example(str(number), correct=True) for number in range(20)]
    source = write_table(tmp_path / "examples", "examples", rows)
    settings = {
        "input": source,
        "output": str(tmp_path / "scored"),
        "model": {"path": random_llama},
        "pool": INLINE,
    }
    with monkeypatch.context() as before:
        before.setattr("nlft_ray.execution.table_stage.settle_model", begun_as)
        whole = nlft_ray.score(ScoreConfig.model_validate(settings))
    scored = read_table(tmp_path / "scored")
    assert nlft_ray.score(ScoreConfig.model_validate(settings)).reused
    first, *_ = (tmp_path / "scored" / "data").iterdir()
    first.unlink()
    again = nlft_ray.score(ScoreConfig.model_validate(settings))
    assert not again.reused
    assert again.manifest.identity == whole.manifest.identity
    assert read_table(tmp_path / "scored") == scored


@pytest.mark.parametrize("budget", [1, 50, 1000])
def test_neighbours_fill_batches_in_order(budget: int) -> None:
    sizes = [5, 100, 7, 30, 30, 31, 1, 2, 80]
    batches = fill(sizes, budget)
    assert [index for batch in batches for index in range(len(sizes))[batch]] == list(range(len(sizes)))
    assert all(batch.stop - batch.start == 1 or sum(sizes[batch]) <= budget for batch in batches)


def read_table_of(path: Path) -> Any:
    import pyarrow.parquet as pq

    return pq.read_table(path).to_pylist()


def test_too_many_bad_rows_fail_the_stage_and_stay_visible(tmp_path: Path, random_llama: str) -> None:
    rows = [example("1", correct=True), example("2", correct=False, judgment=None)]
    settings = ScoreConfig.model_validate(
        {
            "input": write_table(tmp_path / "examples", "examples", rows),
            "output": str(tmp_path / "scored"),
            "model": {"path": random_llama},
            "pool": INLINE,
        }
    )
    with pytest.raises(UserError, match="1 × an incorrect response without a judgment"):
        nlft_ray.score(settings)
    assert [row["id"] for row in read_rejects(tmp_path / "scored")] == ["2"]
    assert nlft_ray.score(settings.model_copy(update={"max_reject_fraction": 0.5})).manifest.rows_rejected == 1


def test_ids_of_another_tokenizer_are_refused(tmp_path: Path, random_llama: str) -> None:
    source = write_table(tmp_path / "e", "examples", [example("1", correct=True)], tokenizer="feedfeedfeedfeed")
    settings = {"input": source, "output": str(tmp_path / "s"), "model": {"path": random_llama}, "pool": INLINE}
    with pytest.raises(UserError, match="tokenizer: feedfeedfeedfeed there"):
        nlft_ray.score(ScoreConfig.model_validate(settings))
