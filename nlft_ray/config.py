"""The configuration of every stage: strict models whose field docstrings are the help texts.

A stage's own settings are its `…Options`; `…Config` adds where it reads, where it writes and the model, and is what
`nlft-ray <stage>` and `nlft_ray.<stage>(config)` take. `RunConfig` holds the options of all stages, for `nlft-ray run`.
"""

import os
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union

import jinja2
import jinja2.meta
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from nlft_ray.core.policies import POLICIES

Fraction = Annotated[float, Field(ge=0, le=1)]


def _absolute(path: str) -> str:
    return path if "://" in path else os.path.abspath(os.path.expanduser(path))


def _absolute_if_there(name: str) -> str:
    return _absolute(name) if os.path.exists(os.path.expanduser(name)) else name


# Made absolute at once: workers on Ray may run in another directory.
FolderPath = Annotated[str, AfterValidator(_absolute)]
PathOrName = Annotated[str, AfterValidator(_absolute_if_there)]


class Strict(BaseModel):
    """Unknown keys and wrong types are errors; values never change after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=())


# ---------------------------------------------------------------------------------------------------- shared parts


class ModelConfig(Strict):
    """The target model."""

    path: PathOrName
    """Folder or hub name of a causal language model; `sandbox` is the small one that comes with the package."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of the weights in memory; `auto` is bfloat16 on a GPU and float32 on a CPU."""
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    """Attention implementation of transformers."""
    max_length: PositiveInt | None = None
    """Most tokens of prompt and response together; unset, what the model's configuration allows."""
    end_of_turn_token: str | None = None
    """Token that ends a response; unset, the tokenizer's end-of-sequence token."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Leave it off for models that you do not trust."""


_TEMPLATE_FIELDS = {"question", "instruction", "standard_answer", "judgment", "response"}
_MUST_NAME = {
    "base": {"question"},
    "judge": {"question", "judgment"},
    "standard": {"question", "standard_answer"},
    "judging": {"question", "response"},
}


class PromptConfig(Strict):
    """The prompts, as Jinja templates over the columns of the examples table."""

    base: str = "{{ question }}"
    """User message of the base context: the task as the model will meet it."""
    judge: str = (
        "{{ question }}\n\nWrite a bad response to this: one that has the following weakness.\n\n"
        "Weakness: {{ judgment }}"
    )
    """User message of the judge context: asks for a response with the weakness that the judgment names."""
    standard: str = (
        "{{ question }}\n\nYou are an expert on this. Here is the standard answer; write a response that reaches it."
        "\n\nStandard answer: {{ standard_answer }}"
    )
    """User message of the standard context: act as an expert, here is the standard answer."""
    judging: str = (
        "Here are a question and a response to it."
        "\n\nQuestion: {{ question }}"
        "{% if standard_answer %}\n\nStandard answer: {{ standard_answer }}{% endif %}"
        "\n\nResponse: {{ response }}"
        "\n\nThe response is thought to be wrong. Name its first mistake in one or two sentences: what it says, and "
        "why that is wrong. Do not solve the question again. If the response is right after all, write only: CORRECT"
    )
    """User message that asks for a judgment of an incorrect response."""
    plain: str = "{% if instruction %}{{ instruction }}\n\n{% endif %}{{ message }}\n\n"
    """Text around a user message where the tokenizer has no chat template; the response follows it directly."""
    instruction_role: Literal["system", "user"] = "system"
    """Where a row's instruction goes: a system message, or ahead of the user message."""
    chat_template_arguments: dict[str, Any] = {}
    """Extra arguments of the tokenizer's chat template, such as `enable_thinking: false`."""

    @model_validator(mode="after")
    def _templates_name_their_fields(self) -> "PromptConfig":
        problems = []
        for name in (*_MUST_NAME, "plain"):
            allowed = {"instruction", "message"} if name == "plain" else _TEMPLATE_FIELDS
            needed = {"message"} if name == "plain" else _MUST_NAME[name]
            try:
                used = jinja2.meta.find_undeclared_variables(jinja2.Environment().parse(getattr(self, name)))
            except jinja2.TemplateSyntaxError as error:
                problems.append(f"template '{name}' does not parse: {error}")
                continue
            if used - allowed:
                problems.append(f"template '{name}' names {sorted(used - allowed)}; it may name {sorted(allowed)}")
            if needed - used:
                problems.append(f"template '{name}' must name {sorted(needed - used)}")
        if problems:
            raise ValueError("; ".join(problems))
        return self


class PoolConfig(Strict):
    """The Ray Data actors of a stage: how many, how large, where."""

    min_workers: PositiveInt = 1
    """Actors that are kept at the least."""
    max_workers: PositiveInt | None = None
    """Actors at the most; unset, as many as the cluster's CPUs (or GPUs) can hold."""
    cpus_per_worker: PositiveInt = 1
    """CPU cores, and threads, of one actor."""
    gpus_per_worker: NonNegativeFloat | None = None
    """GPUs of one actor; unset, 1 where the cluster has GPUs and 0 elsewhere."""
    label_selector: dict[str, str] = {}
    """Labels that a node must have to be given actors, such as `pool: score`."""
    rows_per_shard: PositiveInt | None = None
    """Rows of one unit of work, which is one output file; unset, chosen from the number of rows."""

    @model_validator(mode="after")
    def _bounds_in_order(self) -> "PoolConfig":
        if self.max_workers is not None and self.max_workers < self.min_workers:
            raise ValueError(f"max_workers ({self.max_workers}) is below min_workers ({self.min_workers})")
        return self


class StageConfig(Strict):
    """What every stage has."""

    input: FolderPath
    """Folder of the table to read (local path, or a URI such as s3://bucket/folder)."""
    output: FolderPath
    """Folder to write. Started again, a stage continues there; a complete one is not run twice."""
    overwrite: bool = False
    """Replace an output that was made with another configuration, instead of refusing."""
    max_reject_fraction: Fraction = 0.05
    """Fail when more than this fraction of the input rows could not be used."""


class WithModel(Strict):
    """A stage that runs the target model."""

    model: ModelConfig
    """The target model."""
    prompts: PromptConfig = PromptConfig()
    """The prompts."""
    ray_address: str | None = None
    """Ray cluster to use; unset, the one of RAY_ADDRESS or of the running job, else a local one is started."""


class WithPool(WithModel):
    """A stage whose rows are spread over Ray Data actors."""

    pool: PoolConfig = PoolConfig()
    """The actors that do the work."""


# ------------------------------------------------------------------------------------------------ options per stage

VERIFIER_HELP = "`final_answer`, or `module:function` taking (response, standard_answer) and returning bool"


def _check_verifier(name: str) -> str:
    if name != "final_answer" and not all(part for part in name.partition(":")):
        raise ValueError(f"not a verifier: {VERIFIER_HELP}")
    return name


VerifierName = Annotated[str, BeforeValidator(_check_verifier)]


class ImportOptions(Strict):
    """What to import, and how its columns are called."""

    source: PathOrName
    """File (JSONL, JSON or Parquet), folder of such files, `datasets` name, or `sandbox` for generated problems."""
    format: Literal["gsm8k", "nlft", "cut", "columns", "sandbox"]
    """`gsm8k`: question, answer. `nlft`: instruction, input, output, judgment, answer, score. `cut`: the same without
    answers. `columns`: any columns, named by `columns`. `sandbox`: problems of the embedded world."""
    columns: dict[str, str] = {}
    """For `columns`: our column name → theirs, such as `question: prompt`."""
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
        if (self.format == "columns") != bool(self.columns):
            raise ValueError("format=columns needs `columns`, and only it takes them")
        if (self.format == "sandbox") != (self.source == "sandbox"):
            raise ValueError("format=sandbox and source=sandbox belong together")
        if self.format == "sandbox" and self.limit is None:
            raise ValueError("format=sandbox needs `limit`, the number of problems")
        return self


class SampleOptions(Strict):
    """How the target model's responses are drawn."""

    responses_per_question: PositiveInt = 1
    """Responses drawn for each question."""
    temperature: NonNegativeFloat = 1.0
    """Sampling temperature; 0 is greedy."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Nucleus sampling: the smallest set of tokens with this much probability."""
    max_new_tokens: PositiveInt = 512
    """Longest response in tokens."""
    batch_size: PositiveInt = 32
    """Prompts generated at once by one actor."""
    verifier: VerifierName = "final_answer"
    """How the verdict is reached: `final_answer`, or `module:function` of (response, standard_answer) → bool."""
    seed: NonNegativeInt = 0
    """Seed of the draws."""

    @model_validator(mode="after")
    def _draws_differ(self) -> "SampleOptions":
        if self.temperature == 0 and self.responses_per_question > 1:
            raise ValueError("temperature=0 draws the same response every time: responses_per_question must be 1")
        return self


class JudgeServer(Strict):
    """An OpenAI-compatible chat server."""

    base_url: str
    """Such as https://api.openai.com/v1 or http://127.0.0.1:8000/v1."""
    model: str
    """Model name that the server knows."""
    api_key_variable: str = "OPENAI_API_KEY"
    """Environment variable that holds the key. The key itself is never written anywhere."""
    concurrency: PositiveInt = 8
    """Requests under way at once, per actor."""
    timeout_seconds: PositiveFloat = 120
    """Longest wait for one answer."""
    max_retries: NonNegativeInt = 6
    """Tries after the first, with exponential back-off."""
    cache: FolderPath | None = None
    """Folder of answers already paid for; unset, `judgment_cache` beside the output."""


class JudgeOptions(Strict):
    """Who judges the incorrect responses, and how."""

    server: JudgeServer | None = None
    """An OpenAI-compatible server; unset, the target model judges itself."""
    temperature: NonNegativeFloat = 0.0
    """Sampling temperature of the judgment; 0 is greedy."""
    max_new_tokens: PositiveInt = 256
    """Longest judgment in tokens."""
    batch_size: PositiveInt = 32
    """Prompts generated at once by one actor (self-judging)."""
    disputed_pattern: str = r"(?i)^\W*correct\b"
    """Regular expression: a judgment in which it is found says that the response is right; the row is left out."""
    seed: NonNegativeInt = 0
    """Seed of the draws where temperature is above 0."""

    @field_validator("disputed_pattern")
    @classmethod
    def _pattern_compiles(cls, pattern: str) -> str:
        import re

        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from error
        return pattern


class ScoreOptions(Strict):
    """How responses are scored."""

    max_tokens_per_batch: PositiveInt = 8192
    """Padded tokens of one forward pass: rows × the longest row."""
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


class TrainOptions(Strict):
    """How the model is fine-tuned on the scored table."""

    policy: PolicyConfig = POLICIES["nlft"]()
    """How facts become weights and signs: a policy's name, or its name and numbers."""
    lora: LoraConfig | None = LoraConfig()
    """Low-rank adapters; null fine-tunes all parameters."""
    epochs: PositiveInt = 5
    """Passes over the table."""
    learning_rate: PositiveFloat = 5e-5
    """Highest learning rate."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Course of the learning rate after warm-up."""
    warmup_fraction: Fraction = 0.1
    """Fraction of the steps in which the learning rate rises from zero."""
    batch_size: PositiveInt = 4
    """Examples of one optimizer step, over all workers."""
    micro_batch_size_per_worker: PositiveInt = 1
    """Examples of one forward and backward pass on one worker."""
    normalisation: Literal["example", "weight"] = "example"
    """`example`: mean over examples of the mean over their tokens. `weight`: weighted sum over the sum of weights."""
    weight_decay: NonNegativeFloat = 0.0
    """AdamW's weight decay."""
    max_gradient_norm: NonNegativeFloat = 1.0
    """Gradients are scaled down to this norm; 0 is off."""
    zero_stage: Literal[0, 1, 2, 3] = 0
    """DeepSpeed ZeRO: 1 shards optimizer states over the workers, 2 gradients too, 3 parameters too."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    num_workers: PositiveInt = 1
    """Training processes, one for each GPU."""
    cpus_per_worker: PositiveInt | None = None
    """CPU cores, and threads, of one worker; unset, the machine's cores divided by the workers."""
    gpus_per_worker: Literal[0, 1] | None = None
    """GPUs of one worker; unset, 1 where the cluster has GPUs and 0 elsewhere."""
    label_selector: dict[str, str] = {}
    """Labels that a node must have to be given a training worker, such as `pool: train`."""
    checkpoint_every_steps: PositiveInt | None = None
    """Optimizer steps between checkpoints; unset, once an epoch."""
    checkpoints_to_keep: PositiveInt = 1
    """Newest checkpoints that stay on disk."""
    max_failures: NonNegativeInt = 3
    """Restarts from the last checkpoint after a lost worker."""
    seed: NonNegativeInt = 0
    """Seed of the order of examples and of the adapters' initialisation."""
    deepspeed: dict[str, Any] = {}
    """Further keys of DeepSpeed's configuration, such as offloading. Keys that nlft-ray sets itself are errors."""


class EvaluateOptions(Strict):
    """How accuracy is measured."""

    max_new_tokens: PositiveInt = 512
    """Longest completion in tokens."""
    batch_size: PositiveInt = 32
    """Prompts generated at once by one actor."""
    verifier: VerifierName = "final_answer"
    """How a completion is checked: `final_answer`, or `module:function` of (completion, standard_answer) → bool."""


class ExportOptions(Strict):
    """How the model folder is written."""

    dtype: Literal["float32", "bfloat16"] | None = None
    """Type of the exported weights; unset, the type they were trained in."""


# --------------------------------------------------------------------------------------------------- stage by stage


class ImportConfig(ImportOptions):
    """`nlft-ray import`: data from elsewhere → questions, responses or examples."""

    output: FolderPath
    """Folder to write."""
    overwrite: bool = False
    """Replace an output that was made with another configuration, instead of refusing."""
    max_reject_fraction: Fraction = 0.05
    """Fail when more than this fraction of the rows could not be used."""


class SampleConfig(SampleOptions, WithPool, StageConfig):
    """`nlft-ray sample`: questions → the target model's responses, with verdicts."""


class JudgeConfig(JudgeOptions, WithPool, StageConfig):
    """`nlft-ray judge`: responses → examples: a judgment for each incorrect response."""


class ScoreConfig(ScoreOptions, WithPool, StageConfig):
    """`nlft-ray score`: examples → scored: each response token's probability under the three contexts."""


class TrainConfig(TrainOptions, WithModel, StageConfig):
    """`nlft-ray train`: scored → weights fine-tuned by a policy."""


class EvaluateConfig(EvaluateOptions, WithPool, StageConfig):
    """`nlft-ray evaluate`: questions → predictions and accuracy."""


class ExportConfig(ExportOptions, StageConfig):
    """`nlft-ray export`: a training's output → a Hugging Face model folder."""


class RunConfig(WithPool):
    """`nlft-ray run`: the whole chain from one file."""

    run_dir: FolderPath
    """Folder of the run: one folder in it for each stage's output."""
    questions: ImportOptions
    """The questions to learn from."""
    test_questions: ImportOptions | None = None
    """The questions to measure accuracy on, before and after; unset, nothing is evaluated."""
    policies: Annotated[list[PolicyConfig], Field(min_length=1)] = [POLICIES["nlft"]()]
    """Policies to train, one model each; the first is the one the summary is about."""
    sample: SampleOptions = SampleOptions()
    """How responses are drawn."""
    judge: JudgeOptions = JudgeOptions()
    """Who judges, and how."""
    score: ScoreOptions = ScoreOptions()
    """How responses are scored."""
    train: TrainOptions = TrainOptions()
    """How the model is fine-tuned (its `policy` is taken from `policies`)."""
    evaluate: EvaluateOptions = EvaluateOptions()
    """How accuracy is measured."""
    export: ExportOptions = ExportOptions()
    """How model folders are written."""
    overwrite: bool = False
    """Replace outputs that were made with another configuration, instead of refusing."""
    max_reject_fraction: Fraction = 0.05
    """Fail when more than this fraction of a stage's rows could not be used."""

    @model_validator(mode="after")
    def _policies_stand_once(self) -> "RunConfig":
        names = [policy.name for policy in self.policies]
        if len(set(names)) < len(names):
            raise ValueError(f"policies: each may stand once, got {names}")
        if "policy" in self.train.model_fields_set:
            raise ValueError("train.policy: in a run, the policies stand in the list `policies`")
        return self
