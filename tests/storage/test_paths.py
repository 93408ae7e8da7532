"""Every setting that is a path takes a URI."""

import json
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file

import nlft_ray
from nlft_ray.cli.arguments import load_config
from nlft_ray.cli.main import main
from nlft_ray.config import ImportConfig, JudgeConfig, ModelConfig
from nlft_ray.errors import UserError
from nlft_ray.models import copies
from nlft_ray.models.engines.cache import AnswerCache
from nlft_ray.models.engines.conversation import with_cache
from nlft_ray.models.loading import load_model, load_tokenizer, model_fingerprint, tokenizer_fingerprint
from nlft_ray.storage.folder import Folder
from tests.stages.train import support, workers
from tests.storage.server import Store


def put_model(store: Store, model: str, path: str = "model") -> ModelConfig:
    Folder(store.uri(path)).upload(Path(model))
    return ModelConfig(path=store.uri(path))


def test_a_model_is_read_from_a_store_and_fetched_once(store: Store, model: str, tmp_path: Path) -> None:
    here, there = ModelConfig(path=model), put_model(store, model)
    assert tokenizer_fingerprint(load_tokenizer(there)) == tokenizer_fingerprint(load_tokenizer(here))
    assert not list(copies.COPIES.rglob("*.safetensors")), "the tokenizer needs no weights"
    assert model_fingerprint(there) == model_fingerprint(here)
    wanted = load_model(here).state_dict()
    for _ in range(2):
        found = load_model(there).state_dict()
        assert all(torch.equal(tensor, wanted[name]) for name, tensor in found.items())
    fetched = list(copies.COPIES.rglob("*.safetensors"))
    assert len(fetched) == 1
    put_model(store, support.save_model(tmp_path / "other", tied=False))
    assert model_fingerprint(there) != model_fingerprint(here)
    assert "lm_head.weight" in load_model(there).state_dict()
    assert len(list(copies.COPIES.rglob("*.safetensors"))) == 2, "it was changed, so it is fetched again"
    with pytest.raises(UserError, match="s3://bucket/none does not exist, or holds no files of a model"):
        load_model(ModelConfig(path=store.uri("none")))


@pytest.mark.usefixtures("process_group", "one_thread")
def test_a_training_goes_on_from_its_checkpoint_in_a_store(
    store: Store, model: str, scored: str, tmp_path: Path
) -> None:
    settings = {"batch_size": 3, "checkpoint_every_steps": 2}
    here = support.train_config(model, scored, tmp_path / "trained", **settings)
    workers.train_in(here, tmp_path / "checkpoints")
    table = support.save_scored(store.uri("scored"), model)
    there = support.train_config(put_model(store, model).path, table, store.uri("trained"), **settings)
    workers.train_in(there, store.uri("trained/checkpoints"), stop_after=4)
    assert [line["step"] for line in support.record(there.output)] == [1, 2, 3, 4]
    workers.train_in(there, store.uri("trained/checkpoints"))
    losses = [[line["loss"] for line in support.record(output)] for output in (there.output, here.output)]
    assert losses[0] == losses[1]
    copy = store.downloaded("trained/weights", tmp_path / "copy")
    wanted = load_file(tmp_path / "trained" / "weights" / "model.safetensors")
    found = load_file(copy / "model.safetensors")
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in found.items())


@pytest.mark.parametrize("source", ["rows.jsonl", "rows.json", "rows.parquet", "folder"])
def test_rows_are_imported_from_a_store(source: str, store: Store) -> None:
    rows = [{"question": f"{number} + 2?", "answer": f"#### {number + 2}"} for number in range(3)]
    lines = [json.dumps(row) for row in rows]
    folder = Folder(store.uri("in"))
    (folder / "folder").write_text("rows.jsonl", "\n".join(lines))
    folder.write_text("rows.jsonl", "\n".join(lines))
    folder.write_text("rows.json", f"[{','.join(lines)}]")
    folder.write_table("rows.parquet", pa.Table.from_pylist(rows))
    config = ImportConfig(source=store.uri(f"in/{source}"), format="gsm8k", output=store.uri("questions"))
    assert nlft_ray.import_data(config).manifest.rows_out == 3
    assert nlft_ray.import_data(config).reused


def test_settings_and_a_plan_lie_in_a_store(store: Store, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    put_model(store, model)
    Folder(store.uri("settings")).write_text("plan.yaml", f"output: {store.uri('plan')}")
    main(["plan", store.uri("model"), "--config", store.uri("settings/plan.yaml")])
    assert "Training" in capsys.readouterr().out
    assert {"plan/score.yaml", "plan/train.yaml"} <= store.objects().keys()


def test_a_judges_answers_are_kept_beside_the_output_in_a_store(store: Store) -> None:
    words = [f"input={store.uri('run/responses')}", f"output={store.uri('run/examples')}", "model.path=sandbox"]
    words += ["server.base_url=http://127.0.0.1:9/v1", "server.model=m"]
    server = with_cache(load_config(JudgeConfig, None, words), "judgment_cache").server
    assert server is not None
    assert server.cache == store.uri("run/judgment_cache")
    cache = AnswerCache(Folder(server.cache))
    assert cache.get({"ask": 1}) is None
    cache.put({"ask": 1}, {"judgment": "wrong"})
    assert cache.get({"ask": 1}) == {"judgment": "wrong"}
