"""Settings of each command: a stage's own, where it reads and writes, and the model."""

from typing import Annotated

from pydantic import Field, PositiveInt, model_validator

from nlft_ray.config.options import (
    EvaluateOptions,
    ExportOptions,
    ImportOptions,
    JudgeOptions,
    PolicyConfig,
    ReportOptions,
    SampleOptions,
    ScoreOptions,
    TrainOptions,
)
from nlft_ray.config.shared import (
    Backend,
    FolderPath,
    Fraction,
    ModelConfig,
    NotIdentity,
    PoolConfig,
    PromptConfig,
    Strict,
)
from nlft_ray.core.policies import POLICIES


class StageConfig(Strict):
    """Settings that every stage has."""

    input: Annotated[FolderPath, NotIdentity()]
    """Folder of the table to read (local path, or a URI such as s3://bucket/folder)."""
    output: Annotated[FolderPath, NotIdentity()]
    """Folder to write. Started again, a stage continues there; a complete one is not run twice."""
    overwrite: Annotated[bool, NotIdentity()] = False
    """Replace an output that was made with another configuration, instead of refusing."""
    max_reject_fraction: Annotated[Fraction, NotIdentity()] = 0.05
    """Fail when more than this fraction of the input rows could not be used."""


class WithModel(Strict):
    """A stage that runs the target model."""

    model: ModelConfig
    """The target model."""
    prompts: PromptConfig = PromptConfig()
    """The prompts."""
    ray_address: Annotated[str | None, NotIdentity()] = None
    """Ray cluster to use; unset, the one of RAY_ADDRESS or of the running job, else a local one is started."""


class WithPool(WithModel):
    """A stage whose rows are spread over Ray Data actors."""

    pool: Annotated[PoolConfig, NotIdentity()] = PoolConfig()
    """The actors that do the work."""


class ImportConfig(ImportOptions):
    """`nlft-ray import`: data from elsewhere → questions, responses or examples."""

    output: Annotated[FolderPath, NotIdentity()]
    """Folder to write."""
    overwrite: Annotated[bool, NotIdentity()] = False
    """Replace an output that was made with another configuration, instead of refusing."""
    max_reject_fraction: Annotated[Fraction, NotIdentity()] = 0.05
    """Fail when more than this fraction of the rows could not be used."""


class SampleConfig(SampleOptions, WithPool, StageConfig):
    """`nlft-ray sample`: questions → the target model's responses, with verdicts."""


class JudgeConfig(JudgeOptions, WithPool, StageConfig):
    """`nlft-ray judge`: responses → examples: a judgment for each incorrect response."""


class ScoreConfig(ScoreOptions, WithPool, StageConfig):
    """`nlft-ray score`: examples → scored: each response token's probability under the three contexts."""


class TrainConfig(TrainOptions, WithModel, StageConfig):
    """`nlft-ray train`: scored → weights fine-tuned by a policy."""

    prompts: Annotated[PromptConfig, NotIdentity()] = PromptConfig()
    """The prompts. The table holds ids: prompts were rendered when it was scored."""
    backend: Annotated[Backend, NotIdentity()] = "ray"
    """Where workers train: `ray` places them on a cluster, and starts them again when one is lost; `inline` trains with
    one worker in this process, where a debugger's breakpoint stops. Both give the same weights."""

    @model_validator(mode="after")
    def _inline_is_one_worker(self) -> "TrainConfig":
        if self.backend == "inline" and self.most_workers > 1:
            raise ValueError(
                f"backend: inline is one worker in this process: set num_workers=1 (it is {self.num_workers}), "
                "or use backend: ray"
            )
        return self

    @model_validator(mode="after")
    def _quantised_weights_stay(self) -> "TrainConfig":
        if self.model.quantization is not None and self.lora is None:
            raise ValueError("model.quantization needs adapters: quantised weights cannot be trained; set lora")
        return self


class WeightsConfig(StageConfig):
    """`nlft-ray weights`: scored → tokens with a policy's weights and signs, for other people's trainers."""

    policy: PolicyConfig = POLICIES["nlft"]()
    """How facts become weights and signs: a policy's name, or its name and numbers."""


class EvaluateConfig(EvaluateOptions, WithPool, StageConfig):
    """`nlft-ray evaluate`: questions → predictions and accuracy."""


class ExportConfig(ExportOptions, StageConfig):
    """`nlft-ray export`: a training's output → a Hugging Face model folder."""

    merge: bool = True
    """Merge adapters into the weights so that transformers alone loads the folder; off, only the adapter is written."""


class ReportConfig(ReportOptions):
    """`nlft-ray report`: a run, or a scored folder → one HTML file."""

    input: Annotated[FolderPath, NotIdentity()]
    """Folder of a run, or of a scored table."""
    output: Annotated[FolderPath | None, NotIdentity()] = None
    """Folder to write report.html and report.md into, or the HTML file; unset, `report` in the input."""
    compare: FolderPath | None = None
    """Second scored folder (of another model or judge), shown beside the first where ids are the same."""
    model: ModelConfig | None = None
    """Model whose tokenizer reads the tables; unset, the one they were scored with."""


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
    rounds: PositiveInt = 1
    """Times that sample → judge → score → train is done, each time with the model that the time before trained."""
    refresh: bool = False
    """Score the examples again after each epoch, with the model by then; the epochs become trainings of their own."""
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
    report: ReportOptions = ReportOptions()
    """What the report shows."""
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
        if self.refresh and self.train.max_steps is not None:
            raise ValueError("refresh trains whole epochs, so train.max_steps cannot be set beside it")
        if self.evaluate.server is not None:
            raise ValueError("evaluate.server: a run evaluates the models that it trains, which no server has yet")
        if self.sample.server is not None and self.rounds > 1:
            raise ValueError("sample.server: from the second round on, responses are of a model that no server has yet")
        if self.pool.backend == "inline" and self.train.most_workers > 1:
            raise ValueError(
                f"pool.backend: inline trains with one worker too: set train.num_workers=1 (it is "
                f"{self.train.num_workers}), or use backend: ray"
            )
        return self
