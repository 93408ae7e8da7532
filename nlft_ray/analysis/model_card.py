"""The README.md of an exported model: metadata as the Hugging Face hub reads them, then what nlft-ray knows about it.

`export` writes the card when it knows the training alone; `report` writes the part between the two marks anew once the
run has more to tell, and adds data sets and accuracy to the metadata. What a person writes outside the marks stays, and
a card without marks is left as it is.
"""

import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from nlft_ray.analysis.accuracy import Accuracy, accuracy
from nlft_ray.analysis.markdown import escaped, fenced, sections
from nlft_ray.analysis.run import Run, StageRecord

CARD = "README.md"
_BEGIN = "<!-- nlft-ray: from here to the end mark, every report writes anew -->"
_END = "<!-- nlft-ray: end -->"
_TAGS = ["nlft", "natural-language-fine-tuning", "nlft-ray", "arxiv:2412.20382"]
_FROM_BASE = ("license", "license_name", "license_link", "language")
_OPTIONS = (
    "policy", "epochs", "max_steps", "batch_size", "learning_rate", "schedule", "warmup_fraction", "lora", "seed",
)  # fmt: skip
_ON_THE_HUB = re.compile(r"[\w-][\w.-]*/[\w.-]+")


def new_card(run: Run, training: StageRecord, *, base: Mapping[str, Any], adapter: bool) -> str:
    """The card of a model that has just been exported.

    Args:
        run: the run as far as it has got: the training at least.
        training: the training whose weights were exported.
        base: metadata of the base model's own card, for its licence; and where the base model is a folder, whose path
            would say nothing to others, for its name on the hub.
        adapter: the folder holds an adapter for PEFT, not a whole model.
    """
    base_model = _hub_name(training.manifest.identity.config["model"]["path"]) or base.get("base_model")
    data = ModelCardData(
        base_model=base_model,
        library_name="peft" if adapter else "transformers",
        pipeline_tag="text-generation",
        tags=[*_TAGS, *(["lora"] if training.manifest.identity.config.get("lora") else [])],
        base_model_relation=("adapter" if adapter else "finetune") if base_model else None,
        **{key: base[key] for key in _FROM_BASE if key in base},
    )
    return f"---\n{data.to_yaml()}\n---\n\n{_BEGIN}\n{_body(run, training, None)}\n{_END}\n"


def refreshed_card(card: str, run: Run, training: StageRecord, evaluation: StageRecord | None) -> str | None:
    """The card with all that the run has to tell by now; None where a person has taken the marks out.

    Args:
        card: the card as it stands.
        run: the whole run.
        training: the one whose weights were exported.
        evaluation: the evaluation of this model, where there is one.

    Raises:
        ValueError: the card's metadata are not YAML.
    """
    before, begin, rest = card.partition(_BEGIN)
    _, end, after = rest.rpartition(_END)
    if not (begin and end):
        return None
    model_card = _parse(f"{before}{_BEGIN}\n{_body(run, training, evaluation)}\n{_END}{after}")
    datasets = [name for record in run.of_stage("import") if (name := _dataset(record))]
    if datasets and not model_card.data.get("datasets"):
        model_card.data["datasets"] = sorted(set(datasets))
    if evaluation is not None:
        model_card.data["model_name"] = training.leaf
        model_card.data["eval_results"] = [_eval_result(accuracy(evaluation), run.origin(evaluation))]
    return str(model_card)


def card_metadata(card: str) -> dict[str, Any]:
    """The metadata of any model's card.

    Raises:
        ValueError: they are not YAML.
    """
    return _parse(card).data.to_dict()


def _parse(card: str) -> ModelCard:
    try:
        return ModelCard(card, ignore_metadata_errors=True)
    except yaml.YAMLError as error:
        raise ValueError(f"its metadata are not YAML: {' '.join(str(error).split())}") from error


def _body(run: Run, training: StageRecord, evaluation: StageRecord | None) -> str:
    identity = training.manifest.identity
    path, policy = identity.config["model"]["path"], identity.config["policy"]["name"]
    name = _hub_name(path) or PurePosixPath(path).name
    examples = training.manifest.counts.get("examples", training.manifest.rows_out)
    settings = {key: identity.config[key] for key in _OPTIONS if identity.config.get(key) is not None}
    parts = [
        f"# {escaped(training.leaf)}",
        f"{escaped(name)} (weights {identity.model}), fine-tuned on {examples:,.0f} examples with Natural Language "
        f"Fine-Tuning ([arXiv 2412.20382](https://arxiv.org/abs/2412.20382)) under policy {escaped(policy)}, by "
        f"nlft-ray {identity.software_version}.",
        *_accuracy_line(run, training, evaluation),
        *_prompt(run.origin(training)),
        "How it was trained:",
        fenced(yaml.safe_dump(settings, sort_keys=False, allow_unicode=True), "yaml"),
        *sections(run),
    ]
    return "\n\n".join(parts)


def _accuracy_line(run: Run, training: StageRecord, evaluation: StageRecord | None) -> list[str]:
    if evaluation is None:
        return []
    after = accuracy(evaluation)
    model_and_questions = (training.manifest.identity.model, evaluation.manifest.identity.input)
    earlier = [
        record
        for record in run.of_stage("evaluate")
        if (record.manifest.identity.model, record.manifest.identity.input) == model_and_questions
    ]
    before = f"; before training {accuracy(earlier[0])}" if earlier else ""
    return [f"Accuracy on {after.total:,} test questions: **{after}**{before}."]


def _prompt(scored: StageRecord | None) -> list[str]:
    if scored is None:
        return []
    about = "The user message that it was trained with, a Jinja template; the tokenizer's chat template goes around it:"
    return [about, fenced(scored.manifest.identity.config["prompts"]["base"], "jinja")]


def _eval_result(result: Accuracy, questions: StageRecord | None) -> EvalResult:
    dataset = None if questions is None else _dataset(questions)
    return EvalResult(
        task_type="text-generation",
        dataset_type=dataset or "custom",
        dataset_name=dataset or "test questions",
        dataset_split=None if questions is None else questions.manifest.identity.config.get("split"),
        metric_type="accuracy",
        metric_name=f"accuracy, 95 % interval {result.low:.1f} to {result.high:.1f} %",
        metric_value=round(result.value / 100, 4),
    )


def _dataset(questions: StageRecord) -> str | None:
    """Name on the hub of the data that an import read; None for files and folders."""
    return _hub_name(questions.manifest.identity.config.get("source", ""))


def _hub_name(path_or_name: str) -> str | None:
    """The name, where it is one of the hub's; None for a folder, which configurations hold as an absolute path."""
    return path_or_name if _ON_THE_HUB.fullmatch(path_or_name) else None
