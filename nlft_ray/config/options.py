"""Each stage's own settings."""

import re
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from nlft_ray.config.engines import GenerationOptions, JudgeServer
from nlft_ray.config.shared import (
    FolderPath,
    Fraction,
    NotIdentity,
    PathOrName,
    Strict,
)
from nlft_ray.core.policies import POLICIES


def _check_verifier(name: str) -> str:
    if name != "final_answer" and not all(part for part in name.partition(":")):
        raise ValueError("not a verifier: write `final_answer`, or `module:function` of (response, standard_answer)")
    return name


VerifierName = Annotated[str, BeforeValidator(_check_verifier)]


class ImportOptions(Strict):
    """What to import, and how its columns are called."""

    source: PathOrName
    """File (JSONL, JSON, CSV, TSV, each also .gz or .zst, Parquet or Arrow), folder of such files, `datasets` name, or
    `sandbox` for generated problems."""
    format: Literal["gsm8k", "nlft", "cut", "prompt_completion", "preference", "columns", "sandbox"]
    """`gsm8k`: question, answer. `nlft`: instruction, input, output, judgment, answer, score. `cut`: the same without
    answers. `prompt_completion` (TRL's): a completion is the standard answer. `preference` (TRL's prompt, chosen,
    rejected): two responses a row, the rejected one incorrect; `columns.judgment` names its reason. `columns`: any
    columns, named by `columns`. `sandbox`: problems of the embedded world."""
    columns: dict[str, str] = {}
    """For `columns`: our column name → theirs, such as `question: prompt`; a path, such as `meta.answers[0]`; or a
    Jinja template, such as `{{ Body }} {{ Question }}`."""
    dataset_name: str | None = None
    """Configuration of a `datasets` name, such as `main`."""
    split: str = "train"
    """Split of a `datasets` name, or of the sandbox (`train`, `test`)."""
    limit: PositiveInt | None = None
    """Rows to take from the start; unset, all."""
    instruction: str = ""
    """Instruction (system text) of rows that bring none of their own."""
    min_correct_score: float = 7
    """For `nlft`: a response with this score or more counts as correct (the released code's 7)."""
    seed: NonNegativeInt = 0
    """Seed of the sandbox's problems."""

    @model_validator(mode="after")
    def _columns_fit_format(self) -> "ImportOptions":
        if self.format == "preference":
            if self.columns.keys() - {"judgment"}:
                raise ValueError("format=preference takes no column but `judgment`, the reason of a rejection")
        elif (self.format == "columns") != bool(self.columns):
            raise ValueError("format=columns needs `columns`, and only it takes them")
        if (self.format == "sandbox") != (self.source == "sandbox"):
            raise ValueError("format=sandbox and source=sandbox belong together")
        if self.format == "sandbox" and self.limit is None:
            raise ValueError("format=sandbox needs `limit`, the number of problems")
        return self


class SampleOptions(GenerationOptions):
    """How the target model's responses are drawn."""

    responses_per_question: PositiveInt = 1
    """Responses drawn for each question."""
    temperature: NonNegativeFloat = 1.0
    """Sampling temperature; 0 is greedy."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Nucleus sampling: the smallest set of tokens with this much probability."""
    max_new_tokens: PositiveInt = 512
    """Longest response in tokens."""
    verifier: VerifierName = "final_answer"
    """How the verdict is reached: `final_answer`, or `module:function` of (response, standard_answer) → bool."""
    seed: NonNegativeInt = 0
    """Seed of the draws."""

    @model_validator(mode="after")
    def _draws_differ(self) -> "SampleOptions":
        if self.temperature == 0 and self.responses_per_question > 1:
            raise ValueError("temperature=0 draws the same response every time: responses_per_question must be 1")
        return self


class JudgeOptions(GenerationOptions):
    """Who judges the incorrect responses, and how."""

    server: JudgeServer | None = None  # type: ignore[assignment]
    """An OpenAI-compatible server, whose actors take any node and no GPU in a run; unset, the target model judges
    itself."""
    temperature: NonNegativeFloat = 0.0
    """Sampling temperature of the judgment; 0 is greedy."""
    max_new_tokens: PositiveInt = 256
    """Longest judgment in tokens."""
    disputed_pattern: str = r"(?i)^\W*correct\b"
    """Regular expression: a judgment that it matches says that the response is right; the row is left out."""
    seed: NonNegativeInt = 0
    """Seed of the draws where temperature is above 0."""

    @field_validator("disputed_pattern")
    @classmethod
    def _pattern_compiles(cls, pattern: str) -> str:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from error
        return pattern


USUAL_MAX_TOKENS_PER_BATCH = {"gpu": 8192, "cpu": 2048}
"""Tokens of a forward pass of scoring, by device: a CPU is as fast with a few rows, and needs less memory."""


class ScoreOptions(Strict):
    """How responses are scored."""

    max_tokens_per_batch: PositiveInt | None = None
    """Most tokens of one forward pass; unset, 8192 on a GPU and 2048 on a CPU."""
    hidden_window: PositiveInt = 8
    """K: for each token, cosines to the hidden states of the next K tokens are stored, for growing."""
    too_long: Literal["reject", "truncate"] = "reject"
    """What happens to a row that exceeds the model's length in any context; `truncate` cuts its response's end."""


def _policy_by_name(value: Any) -> Any:
    """`policy: nlft` is short for `policy: {name: nlft}`; numbers without a name are the default policy's."""
    if isinstance(value, str):
        return {"name": value}
    return {"name": "nlft", **value} if isinstance(value, dict) else value


if TYPE_CHECKING:
    from nlft_ray.core.policies.base import Policy as PolicyConfig
else:
    PolicyConfig = Annotated[
        Union[tuple(POLICIES.values())],  # noqa: UP007
        Field(discriminator="name"),
        BeforeValidator(_policy_by_name),
    ]


class LoraConfig(Strict):
    """Low-rank adapters (PEFT)."""

    rank: PositiveInt = 16
    """r: the adapters' rank."""
    alpha: PositiveFloat = 16
    """Scale of the adapters' output, divided by the rank."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout on the adapters' input while training."""
    targets: list[str] | Literal["all-linear"] = "all-linear"
    """Names of the modules that get an adapter, such as [gate_proj, up_proj, down_proj]."""


def _check_worker_number(value: Any) -> Any:
    numbers = list(value) if isinstance(value, list | tuple) else [value, value]
    whole = all(type(number) is int for number in numbers)
    if not whole or len(numbers) != 2 or not 1 <= numbers[0] <= numbers[1]:
        raise ValueError("not a number of workers: write 4, or [2, 4] for at least two and at most four")
    return value


WorkerNumber = Annotated[int | tuple[int, int], BeforeValidator(_check_worker_number)]


Tracker = Literal["tensorboard", "wandb", "mlflow", "trackio"]


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class TrainOptions(Strict):
    """How the model is fine-tuned on the scored table."""

    policy: PolicyConfig = POLICIES["nlft"]()
    """How facts become weights and signs: a policy's name, or its name and numbers."""
    lora: LoraConfig | None = LoraConfig()
    """Low-rank adapters; null fine-tunes all parameters."""
    epochs: PositiveInt = 5
    """Passes over the table."""
    max_steps: PositiveInt | None = None
    """Stop after this many optimizer steps, if the epochs hold more."""
    learning_rate: PositiveFloat = 5e-5
    """Highest learning rate."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Course of the learning rate after warm-up."""
    warmup_fraction: Fraction = 0.1
    """Fraction of the steps in which the learning rate rises from zero."""
    batch_size: PositiveInt = 4
    """Examples of one optimizer step, over all workers."""
    micro_batch_size_per_worker: Annotated[PositiveInt, NotIdentity()] = 1
    """Examples of one forward and backward pass on one worker."""
    packed: Annotated[bool, NotIdentity()] = True
    """Examples of a pass stand one after another without padding, and share the beginning of their prompts, where the
    model's attention allows it; false pads them. What is learned is the same."""
    normalisation: Literal["example", "weight"] = "example"
    """`example`: mean over examples of the mean over their tokens. `weight`: weighted sum over the sum of weights."""
    weight_decay: NonNegativeFloat = 0.0
    """AdamW's weight decay."""
    max_gradient_norm: NonNegativeFloat = 1.0
    """Gradients are scaled down to this norm; 0 is off."""
    zero_stage: Annotated[Literal[0, 1, 2, 3], NotIdentity()] = 0
    """DeepSpeed ZeRO: 1 shards optimizer states over the workers, 2 gradients too, 3 parameters too."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    num_workers: Annotated[WorkerNumber, NotIdentity()] = 1
    """Training processes, one for each GPU. `[least, most]` takes as many as find room, and goes on from the last
    checkpoint with more or fewer when machines come or go."""
    cpus_per_worker: Annotated[PositiveInt | None, NotIdentity()] = None
    """CPU cores, and threads, of one worker; unset, the machine's cores divided by the workers."""
    gpus_per_worker: Annotated[Literal[0, 1] | None, NotIdentity()] = None
    """GPUs of one worker; unset, 1 where nodes with these labels have GPUs and 0 elsewhere."""
    label_selector: Annotated[dict[str, str], NotIdentity()] = {}
    """Labels that a node must have to be given a training worker, such as `pool: train`."""
    checkpoint_every_steps: Annotated[PositiveInt | None, NotIdentity()] = None
    """Optimizer steps between checkpoints; unset, once an epoch."""
    checkpoints_to_keep: Annotated[PositiveInt, NotIdentity()] = 1
    """Newest checkpoints that stay on disk."""
    max_failures: Annotated[NonNegativeInt, NotIdentity()] = 3
    """Restarts from the last checkpoint after a lost worker."""
    held_out: FolderPath | None = None
    """Scored table that is not trained on, whose loss is measured on the way; unset, none."""
    held_out_every_steps: PositiveInt | None = None
    """Optimizer steps between measurements on `held_out`; unset, once an epoch."""
    report_to: Annotated[list[Tracker], BeforeValidator(_as_list), NotIdentity()] = ["tensorboard"]
    """Programs that are sent the metrics of each step: `tensorboard` (files in OUTPUT/tensorboard), `wandb`, `mlflow`,
    `trackio`. Each has its settings from its own environment variables; a training that goes on goes on in its run."""
    seed: NonNegativeInt = 0
    """Seed of the order of examples and of the adapters' initialisation."""
    deepspeed: dict[str, Any] = {}
    """Further keys of DeepSpeed's configuration, such as offloading. Keys that nlft-ray sets itself are errors."""

    @property
    def least_workers(self) -> int:
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[0]

    @property
    def most_workers(self) -> int:
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[1]

    @model_validator(mode="after")
    def _options_fit_together(self) -> "TrainOptions":
        if self.held_out_every_steps is not None and self.held_out is None:
            raise ValueError("held_out_every_steps needs `held_out`, the table to measure on")
        return self


class EvaluateOptions(GenerationOptions):
    """How accuracy is measured."""

    max_new_tokens: PositiveInt = 512
    """Longest completion in tokens."""
    verifier: VerifierName = "final_answer"
    """How a completion is checked: `final_answer`, or `module:function` of (completion, standard_answer) → bool."""


def _check_hub_name(name: str) -> str:
    if not re.fullmatch(r"([\w-][\w.-]*/)?[\w-][\w.-]*", name):
        raise ValueError("not a name on the hub: write `person/model`, of letters, digits, `-`, `_` and `.`")
    return name


HubName = Annotated[str, AfterValidator(_check_hub_name)]


class ExportOptions(Strict):
    """How the model folder is written."""

    dtype: Literal["float32", "bfloat16"] | None = None
    """Type of the exported weights; unset, the type they were trained in."""
    push_to_hub: Annotated[HubName | None, NotIdentity()] = None
    """Name on the Hugging Face hub, such as my-org/my-model, to upload the model to, card included; unset, it stays
    here. HF_TOKEN must hold a token that may write. Of a run, it is uploaded at the end, with accuracies in its card;
    with several policies, each one's model has this name, a dash and the policy's."""
    hub_private: Annotated[bool, NotIdentity()] = True
    """A repository that `push_to_hub` makes is private; one that is there stays as it is."""


class ReportOptions(Strict):
    """What the report shows."""

    policy: PolicyConfig | None = None
    """Policy that the saliency map opens with: a name, or name and numbers; unset, one that was trained, or nlft."""
    max_examples: PositiveInt = 1000
    """Examples in the saliency map, from the start of the table."""
