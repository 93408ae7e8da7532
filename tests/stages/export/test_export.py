"""The exported folder is the trained model, for anyone who has only transformers."""

from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from nlft_ray.config import ExportConfig, ModelConfig, TrainConfig
from nlft_ray.errors import UserError
from nlft_ray.models.loading import load_model, load_tokenizer, tokenizer_fingerprint
from nlft_ray.stages.export import job
from nlft_ray.stages.export.job import export
from nlft_ray.stages.train import loop
from nlft_ray.stages.train.job import train
from tests.models.hub import served
from tests.random_models import save_random_model
from tests.stages.train import support

IDS = torch.arange(6, 26)[None]
pytestmark = pytest.mark.usefixtures("process_group", "one_thread")


def trained(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """Train, and give the trained model's logits."""
    logits: list[Tensor] = []
    write = loop.write_weights

    def write_and_look(model: Any, *arguments: Any) -> None:
        with torch.no_grad():
            logits.append(model.eval()(IDS).logits)
        write(model, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "write_weights", write_and_look)
        train(config.model_copy(update={"backend": "inline"}))
    return logits[0]


def exporting(train: TrainConfig, output: Path, **changes: Any) -> ExportConfig:
    return ExportConfig(input=train.output, output=str(output), **changes)


def assert_card(folder: str, tmp_path: Path, **wanted: Any) -> None:
    """The card holds these metadata, and nothing in the folder but nlft-ray's record names a path of this machine."""
    card = ModelCard.load(Path(folder) / "README.md")
    assert {key: card.data.get(key) for key in wanted} == wanted
    assert "| trained | 6 |" in card.text, "the table of its steps"
    telling = [path.name for path in Path(folder).iterdir() if str(tmp_path).encode() in path.read_bytes()]
    assert telling == ([] if wanted["library_name"] == "transformers" else ["adapter_config.json"])


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("lora", [None, {}], ids=["full", "lora"])
def test_the_exported_model_gives_the_trained_logits(
    lora: Any, tied: bool, scored: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = support.save_model(tmp_path / "model", tied=tied)
    config = support.train_config(model, scored, tmp_path / "trained", lora=lora)
    expected = trained(config, monkeypatch)
    (Path(model) / "README.md").write_text("---\nlicense: mit\n---\n# Mine\n")
    result = export(exporting(config, tmp_path / "out"))
    assert_card(result.output, tmp_path, license="mit", library_name="transformers", base_model=None)
    loaded = AutoModelForCausalLM.from_pretrained(result.output).eval()
    assert loaded.dtype == torch.float32
    torch.testing.assert_close(loaded(IDS).logits, expected, rtol=1e-5, atol=1e-5)
    untrained = AutoModelForCausalLM.from_pretrained(model)
    assert (untrained(IDS).logits - expected).abs().max() > 0.01
    tokenizers = [AutoTokenizer.from_pretrained(folder) for folder in (model, result.output)]
    assert tokenizer_fingerprint(tokenizers[0]) == tokenizer_fingerprint(tokenizers[1])
    assert tokenizers[0].chat_template == tokenizers[1].chat_template
    names = {path.name for path in Path(result.output).iterdir()}
    assert {"model.safetensors", "config.json", "generation_config.json", "tokenizer.json", "manifest.json"} <= names
    assert not any(name.startswith(".") or "adapter" in name for name in names)


def test_the_type_of_the_weights_can_be_chosen(
    model: str, scored: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = support.train_config(model, scored, tmp_path / "trained", lora={})
    expected = trained(config, monkeypatch)
    result = export(exporting(config, tmp_path / "out", dtype="bfloat16"))
    assert {tensor.dtype for tensor in load_file(tmp_path / "out" / "model.safetensors").values()} == {torch.bfloat16}
    loaded = AutoModelForCausalLM.from_pretrained(result.output, dtype=torch.float32)
    torch.testing.assert_close(loaded(IDS).logits, expected, rtol=0.1, atol=0.1)


def test_an_adapter_can_be_exported_alone(
    model: str, scored: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = support.train_config(model, scored, tmp_path / "trained", lora={})
    expected = trained(config, monkeypatch)
    result = export(exporting(config, tmp_path / "out", merge=False))
    assert_card(result.output, Path(model), library_name="peft", base_model_relation=None, license=None)
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), result.output).eval()
    torch.testing.assert_close(loaded(IDS).logits, expected, rtol=1e-5, atol=1e-5)
    assert not (tmp_path / "out" / "model.safetensors").exists()
    assert result.manifest.counts["parameters"] == sum(
        tensor.numel() for tensor in load_file(tmp_path / "out" / "adapter_model.safetensors").values()
    )
    whole = support.train_config(model, scored, tmp_path / "whole")
    trained(whole, monkeypatch)
    with pytest.raises(UserError, match="whole model was trained"):
        export(exporting(whole, tmp_path / "none", merge=False))


def test_a_checkpoint_that_is_quantised_is_trained_by_adapters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = save_random_model(tmp_path / "whole")
    scored = support.save_scored(tmp_path / "scored", model)
    settings = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    quantised = str(tmp_path / "quantised")
    load_model(ModelConfig(path=model, quantization=settings)).save_pretrained(quantised)
    load_tokenizer(ModelConfig(path=model)).save_pretrained(quantised)
    config = support.train_config(quantised, scored, tmp_path / "trained", lora={})
    expected = trained(config, monkeypatch)
    loaded = AutoModelForCausalLM.from_pretrained(export(exporting(config, tmp_path / "out")).output)
    assert not hasattr(loaded.config, "quantization_config")
    assert (loaded(IDS).logits - expected).norm() < 0.1 * expected.norm(), "but for the rounding of 8-bit products"
    with pytest.raises(UserError, match=r"lora: the weights of .* are quantised \(bitsandbytes\)"):
        train(config.model_copy(update={"lora": None, "output": str(tmp_path / "full")}))


def test_an_interrupted_export_is_redone(
    model: str, scored: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = support.train_config(model, scored, tmp_path / "trained", lora={})
    expected = trained(config, monkeypatch)
    to = exporting(config, tmp_path / "out")

    def killed(*_: Any) -> None:
        (tmp_path / "out" / "config.json").write_text("{")
        save_file({"half": torch.zeros(1)}, tmp_path / "out" / "model.safetensors")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(job, "save_model_folder", killed)
        with pytest.raises(KeyboardInterrupt):
            export(to)
    assert not export(to).reused
    loaded = AutoModelForCausalLM.from_pretrained(to.output)
    torch.testing.assert_close(loaded(IDS).logits, expected, rtol=1e-5, atol=1e-5)
    assert export(to).reused


def test_a_base_model_that_was_changed_is_refused(scored: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = support.save_model(tmp_path / "model")
    config = support.train_config(model, scored, tmp_path / "trained", lora={})
    trained(config, monkeypatch)
    tensors = load_file(Path(model) / "model.safetensors")
    save_file(
        {name: tensor + 1 for name, tensor in tensors.items()}, Path(model) / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(UserError, match="not the model any more"):
        export(exporting(config, tmp_path / "out"))


def test_only_finished_trainings_are_exported(scored: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds scored"):
        export(ExportConfig(input=scored, output=str(tmp_path / "out")))


def test_a_model_goes_to_the_hub_where_that_is_asked_for(scored: str, model: str, tmp_path: Path) -> None:
    config = support.train_config(model, scored, tmp_path / "trained", lora={"rank": 2}, epochs=1)
    train(config.model_copy(update={"backend": "inline"}))

    def refused() -> str:
        with pytest.raises(UserError) as caught:
            export(asked)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    asked = exporting(config, tmp_path / "out", push_to_hub="someone/mine")
    with pytest.MonkeyPatch.context() as patch, served(tmp_path, patch) as hub:
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        assert "someone/mine cannot be sent while HF_HUB_OFFLINE is set" in refused()
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        assert "set HF_TOKEN to a token that may write" in refused()
        patch.setenv("HF_TOKEN", "hf_reader")
        assert "HF_TOKEN has no right to write there" in refused()
        assert "The model is complete in" in refused()
        assert hub.visibility == {}

        patch.setenv("HF_TOKEN", hub.writer)
        assert export(asked).reused
        assert export(asked).reused
        assert (hub.visibility, len(hub.messages)) == ({"someone/mine": "private"}, 1), "nothing is sent twice"
        here, there = (
            {path.name: path.read_bytes() for path in Path(folder).iterdir()}
            for folder in (tmp_path / "out", hub.folder / "someone/mine")
        )
        assert here.keys() - there.keys() == {"plan.json", "manifest.json"}
        assert there.items() <= here.items()
        assert "README.md" in there
        with torch.no_grad():
            sent, kept = (load_model(ModelConfig(path=path))(IDS).logits for path in ("someone/mine", asked.output))
        assert torch.equal(sent, kept)

        patch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")  # where nobody listens
        assert "there is no way to http://127.0.0.1:9" in refused()


def test_a_name_that_no_hub_has_is_refused_at_once() -> None:
    for name in ("https://huggingface.co/someone/mine", "a/b/c", "some one/mine"):
        with pytest.raises(ValueError, match="not a name on the hub"):
            ExportConfig(input="in", output="out", push_to_hub=name)
