"""The model card: metadata that the hub reads, and a body that later reports write anew."""

from typing import Any

import pytest
from huggingface_hub import ModelCard

from nlft_ray.analysis.model_card import card_metadata, new_card, refreshed_card
from nlft_ray.analysis.run import Run, StageRecord
from nlft_ray.storage.folder import Folder
from nlft_ray.tables.manifest import Identity, Manifest, input_fingerprint

HOSTILE = "| a <script>`x` *y* ``` -->"
STEP = {"loss_likelihood": 2.0, "loss_unlikelihood": 0.5, "loss_anchor": 1.0, "weighted_tokens": 9, "seconds": 1.0}


def record(name: str, stage: str, config: dict[str, Any], **fields: Any) -> StageRecord:
    counts = fields.pop("counts", {})
    identity = Identity(stage=stage, software_version="1", config=config, **fields)
    manifest = Manifest(identity=identity, rows_in=400, rows_out=400, rows_rejected=0, seconds=1.0, counts=counts)
    return StageRecord(name, Folder(f"/run/{name}"), manifest)


def follows(before: StageRecord) -> str:
    return input_fingerprint(before.manifest)


def training(path: str = "org/base", **config: Any) -> StageRecord:
    settings = {"model": {"path": path}, "policy": {"name": "nlft", "theta": 0.9}, "epochs": 5, "lora": None} | config
    return record(
        "trained/nlft", "train", settings, model="base-print", counts={"examples": 45.0}, input=follows(SCORED)
    )


def accuracy(name: str, value: float, model: str) -> StageRecord:
    counts = {"accuracy": value, "accuracy_low": value - 0.1, "accuracy_high": value + 0.1, "correct": 400 * value}
    return record(f"predictions/{name}", "evaluate", {}, model=model, counts=counts, input=follows(TEST))


SCORED = record("scored", "score", {"prompts": {"base": f"{{{{ question }}}} {HOSTILE}"}})
QUESTIONS = record("questions", "import", {"source": "/home/me/secret/train.jsonl", "split": "train"})
TEST = record("test_questions", "import", {"source": "openai/gsm8k", "split": "test"})


def exported(trained: StageRecord, base: dict[str, Any] | None = None, *, adapter: bool = False) -> str:
    run = Run(name="nlft", stages=[trained], metrics={"nlft": [STEP]})
    return new_card(run, trained, base=base or {}, adapter=adapter)


def whole_run(trained: StageRecord) -> tuple[Run, StageRecord]:
    after = accuracy("nlft", 0.75, "new-print")
    other = accuracy("rft", 0.7, "other-print")
    before = accuracy("before", 0.35, "base-print")
    stages = [QUESTIONS, TEST, SCORED, trained, before, after, other]
    return Run(name="run", stages=stages, metrics={"nlft": [STEP]}), after


def test_a_new_card_has_the_hubs_metadata_and_what_training_was() -> None:
    card = ModelCard(exported(training(), {"license": "mit", "language": "de", "tags": ["theirs"]}))
    assert card.data.to_dict() == {
        "base_model": "org/base",
        "base_model_relation": "finetune",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "license": "mit",
        "language": "de",
        "tags": ["nlft", "natural-language-fine-tuning", "nlft-ray", "arxiv:2412.20382"],
    }
    assert "org/base (weights base-print), fine-tuned on 45 examples" in card.text
    assert "theta: 0.9" in card.text
    assert "| nlft | 1 | 2 | 0.5 | 1 | 9 | 1 |" in card.text
    assert "Accuracy" not in card.text


def test_an_adapter_says_so() -> None:
    data: Any = ModelCard(exported(training(lora={"rank": 4}), adapter=True)).data
    assert (data.library_name, data.base_model_relation) == ("peft", "adapter")
    assert "lora" in data.tags


def test_a_base_model_in_a_folder_is_known_by_its_own_card_or_not_at_all() -> None:
    trained = training("/home/me/secret/my_model")
    assert not {"base_model", "base_model_relation"} & set(card_metadata(exported(trained)))
    card = exported(trained, {"base_model": "org/ancestor"})
    assert card_metadata(card)["base_model"] == "org/ancestor"
    assert r"my\_model (weights base-print)" in card
    assert "secret" not in card


def test_a_report_adds_accuracy_datasets_and_the_prompt() -> None:
    trained = training()
    run, evaluation = whole_run(trained)
    card = refreshed_card(exported(trained), run, trained, evaluation)
    assert card is not None
    assert "**75.0 % (95 % interval 65.0 to 85.0 %)**; before training 35.0 % (95 % interval 25.0 to 45.0 %)." in card
    assert "| rft | 70.0 % |" in card
    assert f"````jinja\n{{{{ question }}}} {HOSTILE}\n````" in card
    assert "secret" not in card
    data: Any = ModelCard(card).data
    assert data.datasets == ["openai/gsm8k"]
    (result,) = data.eval_results
    assert (result.dataset_name, result.dataset_split, result.metric_type) == ("openai/gsm8k", "test", "accuracy")
    assert result.metric_value == 0.75
    assert refreshed_card(card, run, trained, evaluation) == card, "a second report changes nothing"


def test_what_a_person_wrote_stays() -> None:
    trained = training()
    run, evaluation = whole_run(trained)
    mine = exported(trained).replace("tags:\n", "license: other\ntags:\n- mine\n") + "\n# My own words\n"
    card = refreshed_card(mine, run, trained, evaluation)
    assert card is not None
    assert card.endswith("\n# My own words\n")
    assert card_metadata(card)["license"] == "other"
    assert card_metadata(card)["tags"][0] == "mine"
    assert refreshed_card("# All mine\n", run, trained, evaluation) is None


def test_metadata_that_are_no_yaml_are_refused() -> None:
    with pytest.raises(ValueError, match="not YAML"):
        card_metadata("---\na: [\n---\n# x\n")
    assert card_metadata("# no metadata\n") == {}


def test_hostile_names_are_escaped() -> None:
    trained = training(f"/x/{HOSTILE}")
    run = Run(name="run", stages=[trained], metrics={HOSTILE: [STEP]})
    card = new_card(run, trained, base={}, adapter=False)
    assert "<script>" not in card
    assert r"\| a &lt;script>\`x\` \*y\* \`\`\` -->" in card
