"""Settings of `nlft-ray plan`: a model, the lengths of texts, and the machines."""

from pydantic import NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from nlft_ray.config.options import ScoreOptions, TrainOptions
from nlft_ray.config.shared import FolderPath, Fraction, ModelConfig, Strict


class LengthsConfig(Strict):
    """The longest texts, in tokens: they decide how much memory is needed at most. Where none is set, they shrink to
    what the model takes."""

    prompt_tokens: PositiveInt = 512
    """Instruction and question."""
    response_tokens: PositiveInt = 512
    """The model's response."""
    standard_answer_tokens: NonNegativeInt = 256
    """The standard answer, with what the prompt says about it."""
    judgment_tokens: NonNegativeInt = 128
    """The judgment, with what the prompt says about it."""


class ClusterConfig(Strict):
    """The machines. What is left unset is taken from this machine."""

    nodes: PositiveInt = 1
    """Machines, all alike."""
    gpus_per_node: NonNegativeInt | None = None
    """GPUs of each machine; 0 plans for its CPUs."""
    gpu_memory_gib: PositiveFloat | None = None
    """Memory of one GPU in GiB, such as 80."""
    cpus_per_node: PositiveInt | None = None
    """CPU cores of each machine."""
    node_memory_gib: PositiveFloat | None = None
    """Memory of each machine in GiB, beside that of its GPUs."""
    reserve_fraction: Fraction = 0.1
    """Fraction of the memory that is left free: for fragments, and for what a formula does not know."""

    @model_validator(mode="after")
    def _gpus_have_a_size(self) -> "ClusterConfig":
        if bool(self.gpus_per_node) != (self.gpu_memory_gib is not None):
            raise ValueError("gpus_per_node and gpu_memory_gib belong together")
        return self


class PlanConfig(Strict):
    """`nlft-ray plan`: how much memory scoring and training need, what fits, and which settings to use."""

    model: ModelConfig
    """The target model. Its configuration is read, never its weights: a folder with a config.json will do."""
    lengths: LengthsConfig = LengthsConfig()
    cluster: ClusterConfig = ClusterConfig()
    """The machines."""
    tensor_parallel: PositiveInt = 1
    """Processes that share a copy of the model for scoring, each on a GPU of one machine (`pool.tensor_parallel`)."""
    score: ScoreOptions = ScoreOptions()
    """How responses are scored; what is set here is kept."""
    train: TrainOptions = TrainOptions()
    """How the model is fine-tuned; what is set here is kept, and only the rest is chosen."""
    output: FolderPath | None = None
    """Folder for score.yaml and train.yaml; unset, they are only shown."""
