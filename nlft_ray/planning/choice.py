"""Choice of settings that fit: from those that are cheapest in time to those cheapest in memory."""

from collections.abc import Iterator
from dataclasses import dataclass

from nlft_ray.config import LengthsConfig, PlanConfig, ScoreOptions
from nlft_ray.config.options import USUAL_MAX_TOKENS_PER_BATCH
from nlft_ray.core.policies import Policy
from nlft_ray.errors import UserError
from nlft_ray.planning.devices import Devices
from nlft_ray.planning.memory import Memory, Pass, TrainingSetup, scoring_memory, training_memory
from nlft_ray.planning.shape import Adapters, Shape

_CONTEXTS = 3  # base, judge, standard: an incorrect response needs all
# ZeRO, section 7: stages up to 2 send as much as plain data parallelism, so stage 2 costs no time over stage 1; stage 3
# sends half as much again. Checkpointing costs about a third of the computation.
_BY_COST = ((0, False), (2, False), (0, True), (2, True), (3, False), (3, True))


@dataclass(frozen=True)
class ScoringChoice:
    """Settings to score with, and the memory that they take."""

    max_tokens_per_batch: int
    workers: int
    processes: int
    """Processes of each worker, which share the model."""
    memory: Memory
    usable: int
    """Bytes that each process may take."""

    @property
    def fits(self) -> bool:
        return self.memory.total <= self.usable


@dataclass(frozen=True)
class TrainingChoice:
    """Settings to train with, and the memory that they take."""

    setup: TrainingSetup
    micro_batch_size: int
    memory: Memory
    usable: int
    """Bytes that each worker may take."""

    @property
    def workers(self) -> int:
        return self.setup.workers

    @property
    def fits(self) -> bool:
        return self.memory.total <= self.usable


def scoring_pass(lengths: LengthsConfig, max_tokens: int, number_bytes: int) -> Pass:
    """The largest pass: as many of the longest rows as `max_tokens` holds, or one.

    A row's contexts share the question, and each has its own rest of the prompt and the response.
    """
    row = (
        lengths.prompt_tokens
        + lengths.judgment_tokens
        + lengths.standard_answer_tokens
        + _CONTEXTS * lengths.response_tokens
    )
    rows = max(max_tokens // row, 1)
    return Pass(max(rows * row, max_tokens), rows * _CONTEXTS * lengths.response_tokens, number_bytes)


def training_pass(lengths: LengthsConfig, policy: Policy, micro_batch_size: int, number_bytes: int) -> Pass:
    """The largest micro-batch: the longest prompts with what the policy trains, all of it weighted."""
    targets = lengths.standard_answer_tokens if policy.target == "standard_answer" else lengths.response_tokens
    return Pass(micro_batch_size * (lengths.prompt_tokens + targets), micro_batch_size * targets, number_bytes)


def choose_scoring(config: PlanConfig, shape: Shape, devices: Devices, number_bytes: int) -> ScoringChoice:
    """The usual pass, or a smaller one where that does not fit; then as many workers as there is room for.

    Raises:
        UserError: a machine has not as many devices as processes share the model.
    """
    processes, on_gpu = config.tensor_parallel, devices.kind == "gpu"
    most = devices.count // devices.nodes if on_gpu else devices.cpus_per_node
    if processes > most:
        what = "GPUs" if on_gpu else "CPU cores"
        raise UserError(f"tensor_parallel={processes}: the processes stand on one machine, which has {most} {what}.")
    for max_tokens in _token_budgets(config.score, devices):
        batch = scoring_pass(config.lengths, max_tokens, number_bytes)
        memory = scoring_memory(
            shape,
            batch,
            longest_response=config.lengths.response_tokens,
            stored_tokens=config.lengths.prompt_tokens,
            on_gpu=on_gpu,
            processes=processes,
        )
        if memory.total <= devices.usable(1 if on_gpu else processes) or batch.tokens > max_tokens:
            break
    on_a_node = most if on_gpu else max(_processes_in(devices, memory.total), processes)
    usable = devices.usable(1 if on_gpu else on_a_node)
    return ScoringChoice(max_tokens, devices.nodes * (on_a_node // processes), processes, memory, usable)


def _token_budgets(score: ScoreOptions, devices: Devices) -> Iterator[int]:
    if score.max_tokens_per_batch is not None:
        yield score.max_tokens_per_batch
        return
    tokens = USUAL_MAX_TOKENS_PER_BATCH[devices.kind]
    while tokens:
        yield tokens
        tokens //= 2


def _processes_in(devices: Devices, process_bytes: int) -> int:
    """Number of processes, of one core each, that a machine holds; at least one."""
    return max((n for n in range(1, devices.cpus_per_node + 1) if process_bytes <= devices.usable(n)), default=1)


class TrainingSearch:
    """The ways of training one model on these devices."""

    def __init__(
        self, config: PlanConfig, shape: Shape, adapters: Adapters | None, devices: Devices, number_bytes: int
    ):
        self._options, self._lengths = config.train, config.lengths
        self._shape, self._adapters, self._devices, self._number_bytes = shape, adapters, devices, number_bytes

    def fastest(self) -> TrainingChoice | None:
        """The fastest way that fits, with the largest micro-batches that do; None where none fits."""
        for workers in self._numbers_of_workers():
            share = -(-self._options.batch_size // workers)
            for stage, checkpointing in self._ways(workers):
                for micro in self._micro_batch_sizes(share):
                    choice = self.choice(stage, checkpointing, workers, micro)
                    if choice.fits:
                        return choice
        return None

    def choice(
        self, zero_stage: int, gradient_checkpointing: bool, workers: int, micro_batch_size: int
    ) -> TrainingChoice:
        """One way of training, whether it fits or not."""
        share = -(-self._options.batch_size // workers)
        setup = TrainingSetup(
            adapters=self._adapters,
            zero_stage=zero_stage,
            workers=workers,
            gradient_checkpointing=gradient_checkpointing,
            micro_steps=-(-share // micro_batch_size),
            on_gpu=self._devices.kind == "gpu",
        )
        batch = training_pass(self._lengths, self._options.policy, micro_batch_size, self._number_bytes)
        on_one_device = 1 if self._devices.kind == "gpu" else -(-workers // self._devices.count)
        return TrainingChoice(
            setup,
            micro_batch_size,
            training_memory(self._shape, batch, setup),
            self._devices.usable(on_one_device),
        )

    def workers(self) -> int:
        """Number of workers: as many as there are devices, and as the examples of a step can keep busy."""
        return next(iter(self._numbers_of_workers()))

    def _numbers_of_workers(self) -> list[int]:
        if "num_workers" in self._options.model_fields_set:
            return [self._options.least_workers]
        every = self._devices.count
        return sorted({min(every, self._options.batch_size), every})

    def _ways(self, workers: int) -> Iterator[tuple[int, bool]]:
        settings = self._options.model_fields_set
        for stage, checkpointing in _BY_COST if "zero_stage" not in settings else _with_stage(self._options.zero_stage):
            if workers == 1 and stage > 0 and "zero_stage" not in settings:
                continue  # nothing to share the states with
            if "gradient_checkpointing" in settings and checkpointing != self._options.gradient_checkpointing:
                continue
            yield stage, checkpointing

    def _micro_batch_sizes(self, share: int) -> Iterator[int]:
        if "micro_batch_size_per_worker" in self._options.model_fields_set:
            yield self._options.micro_batch_size_per_worker
            return
        yield from range(share, 0, -1)


def _with_stage(stage: int) -> tuple[tuple[int, bool], ...]:
    return (stage, False), (stage, True)
