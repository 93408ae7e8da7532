"""Shortcuts are taken where a model allows them; whichever are, the log-odds are those of each row alone.

That rows are padded where that is asked for, `check_steps` asserts in every case of test_exactness.py.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from transformers import AutoConfig, AutoModelForCausalLM

from nlft_ray.core.logprobs import token_log_odds
from nlft_ray.stages.train import engine as engine_module
from nlft_ray.stages.train.engine import Engine, build_engine
from nlft_ray.stages.train.examples import MicroBatch
from nlft_ray.stages.train.loop import note_ways
from nlft_ray.storage.folder import Folder
from tests.random_models import byte_tokenizer
from tests.stages.train import support, workers

pytestmark = pytest.mark.usefixtures("process_group", "one_thread")

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "initializer_range": 0.3}
GATED = {"intermediate_size": 24, "num_key_value_heads": 1, "max_position_embeddings": 64, "head_dim": 8}
MODELS: dict[str, tuple[str, dict[str, Any], bool, bool]] = {
    # model type, its shape, whether rows can be packed, whether log-odds can be asked of its head
    "llama": ("llama", GATED, True, True),
    "qwen3": ("qwen3", GATED, True, True),
    "gpt2, whose own dropout is off": ("gpt2", {"n_positions": 64, "resid_pdrop": 0.5}, True, True),
    "mistral, with a sliding window": ("mistral", GATED | {"sliding_window": 8}, True, True),
    "cohere, which scales its logits": ("cohere", GATED | {"logit_scale": 0.25}, True, False),
    "gemma2, which caps its logits": ("gemma2", GATED | {"final_logit_softcapping": 2.0}, True, False),
    "falcon, by a mask": ("falcon", {}, True, True),
    "bloom, with ALiBi": ("bloom", {}, False, True),
}


def build(folder: Path, kind: str, shape: dict[str, Any], **changes: Any) -> Engine:
    tokenizer = byte_tokenizer()
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **(SMALL | shape), vocab_size=len(tokenizer), eos_token_id=1)
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return build_engine(support.train_config(str(folder), "-", folder / "out", **changes), 1)


@pytest.mark.parametrize("name", MODELS)
def test_log_odds_are_those_of_each_row_alone(name: str, scored: str, model: str, tmp_path: Path) -> None:
    kind, shape, packs, asks_the_head = MODELS[name]
    engine = build(tmp_path, kind, shape, lora={"targets": "all-linear"})
    assert (engine.packed, engine.head is not None) == (packs, asks_the_head)
    note_ways(engine, True, Folder(str(tmp_path)))
    notes = (tmp_path / "notes.log").read_text() if (tmp_path / "notes.log").exists() else ""
    assert ("padded" in notes, "logits" in notes) == (not packs, not asks_the_head)
    examples = support.weigh(support.train_config(model, scored, tmp_path / "out"))[:5]
    found = engine.log_odds(MicroBatch.of(examples, 0, packed=engine.packed))
    plain = AutoModelForCausalLM.from_pretrained(tmp_path)
    wanted = []
    for example in examples:
        ids = torch.tensor(example.input_ids).long()
        logits = plain(ids[None]).logits[0, example.response_start - 1 : -1]
        wanted.append(token_log_odds(logits, ids[example.response_start :])[torch.tensor(example.weighted)])
    torch.testing.assert_close(found, torch.cat(wanted), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("cap", [None, 30.0])
def test_a_cap_is_seen_in_every_type(cap: float | None, dtype: str, tmp_path: Path) -> None:
    """In bfloat16 it moves small logits by less than they are rounded by."""
    shape = GATED | {"final_logit_softcapping": cap, "initializer_range": 0.02}
    engine = build(tmp_path, "gemma2", shape, model={"path": str(tmp_path), "dtype": dtype})
    assert (engine.head is None) == (cap is not None)
    assert engine.packed


def disagree(results: Path) -> None:
    """What each worker does where the first alone is told that its head is as it should be."""
    with pytest.MonkeyPatch.context() as patch:
        told = dist.get_rank() == 0
        patch.setattr(engine_module, "gives_logits_of_head", lambda *_: told)
        config = support.train_config(str(results / "model"), "-", results / "out", zero_stage=3)
        engine = build_engine(config, 1)
    (results / f"worker {dist.get_rank()}").write_text(f"{engine.head is not None} {engine.packed}")


def test_a_shortcut_that_one_worker_may_not_take_is_taken_by_none(two_workers: workers.Group, tmp_path: Path) -> None:
    support.save_model(tmp_path / "model")
    two_workers.do(disagree, tmp_path)
    assert {(tmp_path / f"worker {rank}").read_text() for rank in (0, 1)} == {"False True"}


def test_rows_are_padded_where_that_is_asked_for(model: str, tmp_path: Path) -> None:
    assert not build_engine(support.train_config(model, "-", tmp_path, packed=False), 1).packed


def test_a_head_with_adapters_gives_logits(model: str, tmp_path: Path) -> None:
    engine = build_engine(support.train_config(model, "-", tmp_path, lora={"targets": ["lm_head", "q_proj"]}), 1)
    assert engine.head is None
    assert engine.packed


def test_positions_are_those_of_the_model_that_is_exported(model: str, tmp_path: Path) -> None:
    """Older releases of DeepSpeed round the frequencies of positions to bfloat16."""
    plain = dict(AutoModelForCausalLM.from_pretrained(model).named_buffers())
    engine = build_engine(support.train_config(model, "-", tmp_path, model={"path": model, "dtype": "bfloat16"}), 1)
    assert engine.model.dtype == torch.bfloat16
    for name, buffer in engine.model.named_buffers():
        torch.testing.assert_close(buffer, plain[name], rtol=0, atol=0)
