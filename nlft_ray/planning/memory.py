"""Memory of scoring and training, by arithmetic on a model's shape. Everything is in bytes, for one device.

Sources
    states        Rajbhandari et al., ZeRO (arXiv 1910.02054), section 3 and figure 1: parameters, gradients and Adam's
                  states, and which of them each stage divides by the number of workers
    activations   Korthikanti et al., Reducing Activation Recomputation (arXiv 2205.05198), section 4, with the tensors
                  that transformers' decoder layers hand to autograd in place of Megatron's
    buffers       DeepSpeed's runtime/engine.py, runtime/bf16_optimizer.py and runtime/zero/: what it copies to reduce
                  gradients and to update parameters

Memory is highest at one of a few moments. Each is a sum of its own; the largest of the sums is what must fit.
"""

from dataclasses import dataclass, fields

from nlft_ray.core import head as trained_head
from nlft_ray.planning.shape import Adapters, Shape
from nlft_ray.stages.score import response_head as scored_head

FLOAT32 = 4
FRAGMENTS_ON_CPU = 0.7
"""Share of each step's transient memory that a CPU's allocator (glibc's) holds on top, as freed blocks that do not fit
the next request. Measured, not derived (benchmarks/planning.py); on a GPU `cluster.reserve_fraction` covers it."""
REDUCE_BUCKET = 500_000_000
"""Gradients that DeepSpeed reduces at a time (its `reduce_bucket_size`)."""


@dataclass(frozen=True)
class Memory:
    """Bytes on one device at the moment when most are in use."""

    moment: str
    weights: int = 0
    gradients: int = 0
    optimizer: int = 0
    """Adam's two moments, and float32 copies of what is trained."""
    activations: int = 0
    logits: int = 0
    buffers: int = 0
    """Copies for communication and for the update."""
    fragments: int = 0
    """Freed blocks that the allocator holds."""

    @property
    def total(self) -> int:
        return sum(getattr(self, part.name) for part in fields(self) if part.name != "moment")


@dataclass(frozen=True)
class Pass:
    """One forward pass."""

    tokens: int
    responses: int
    """Tokens among them that predict a response's token: the LM head runs there alone."""
    number_bytes: int
    """Bytes of a weight, and of an activation: 4 in float32, 2 in bfloat16."""


@dataclass(frozen=True)
class TrainingSetup:
    """Settings that decide the memory of a training, beside the model's shape and the pass."""

    adapters: Adapters | None
    """None fine-tunes all parameters."""
    zero_stage: int
    workers: int
    gradient_checkpointing: bool
    micro_steps: int
    """Forward and backward passes of one optimizer step."""
    on_gpu: bool


def scoring_memory(
    shape: Shape, batch: Pass, *, longest_response: int, stored_tokens: int, on_gpu: bool, processes: int = 1
) -> Memory:
    """Memory of scoring: nothing is kept from layer to layer.

    Args:
        shape: the shape of the model.
        batch: the largest pass.
        longest_response: tokens of the longest response; the LM head takes one response after another.
        stored_tokens: tokens of prefixes whose keys and values are kept between passes.
        on_gpu: whether it runs on a GPU.
        processes: processes that share the model, of which this is one's memory. Between layers, states are whole in
            each; logits are gathered, in a copy of their own.
    """
    size = batch.number_bytes
    weights = shape.parameters * size // processes
    cache = 2 * shape.key_width * shape.layers * stored_tokens * size // processes
    hidden = shape.width * (batch.tokens + batch.responses) * size
    logits = shape.vocabulary * min(scored_head.LOGITS_AT_A_TIME, longest_response) * size * (1 + (processes > 1))
    in_float32 = 2 * scored_head.FLOAT32_BYTES["gpu" if on_gpu else "cpu"]
    inside = _inside_a_layer(shape, batch, processes)
    fragments = _fragments(max(inside, hidden) + logits, on_gpu)
    return max(
        Memory("a layer", weights, activations=inside + cache, fragments=fragments),
        Memory("the logits", weights, activations=hidden + cache, logits=logits + in_float32, fragments=fragments),
        key=lambda memory: memory.total,
    )


def _fragments(transient: int, on_gpu: bool) -> int:
    return 0 if on_gpu else int(FRAGMENTS_ON_CPU * transient)


def _inside_a_layer(shape: Shape, batch: Pass, processes: int) -> int:
    """Bytes alive at once inside a layer without gradients, at the most: the residual stream, and what attention or the
    MLP reads and writes, of which each process has its part."""
    attention = 3 * shape.width + (3 * shape.query_width + 2 * shape.key_width) // processes
    mlp = 2 * shape.width + (3 if shape.gated else 2) * shape.mlp_width // processes
    return max(attention, mlp) * batch.tokens * batch.number_bytes


def training_memory(shape: Shape, batch: Pass, training: TrainingSetup) -> Memory:
    """Memory of one worker's training."""
    states = training_states(shape, batch, training)
    return max(
        _at_the_loss(shape, batch, training, states),
        _at_the_update(shape, batch, training, states),
        key=lambda memory: memory.total,
    )


@dataclass(frozen=True)
class States:
    """Bytes that live through the whole training."""

    weights: int
    gradients: int
    optimizer: int


def trainable_parameters(shape: Shape, training: TrainingSetup) -> int:
    """Numbers that the optimizer changes, over all workers."""
    return training.adapters.parameters if training.adapters else shape.parameters


def training_states(shape: Shape, batch: Pass, training: TrainingSetup) -> States:
    """Weights, gradients and optimizer of one worker (ZeRO, figure 1)."""
    size, workers, stage = batch.number_bytes, training.workers, training.zero_stage
    trainable = trainable_parameters(shape, training)
    every = shape.parameters + (training.adapters.parameters if training.adapters else 0)
    copies = FLOAT32 if stage >= 1 or size < FLOAT32 else 0  # ZeRO's optimizers keep a float32 copy in any case
    moments = 2 * FLOAT32
    return States(
        weights=every * size // (workers if stage == 3 else 1),
        gradients=trainable * size // (workers if stage >= 2 else 1),
        optimizer=trainable * (copies + moments) // (workers if stage >= 1 else 1),
    )


def _at_the_loss(shape: Shape, batch: Pass, training: TrainingSetup, states: States) -> Memory:
    """Memory after the forward pass: all activations wait for the backward one, which begins with the LM head."""
    full = training.adapters is None
    activations = _activations(shape, batch, training)
    chunks = _logits_chunks(shape, batch, training.on_gpu)
    head = 2 * shape.vocabulary * shape.width * FLOAT32 if full else shape.width * batch.responses * batch.number_bytes
    return Memory(
        "the loss",
        weights=states.weights,
        gradients=states.gradients if training.micro_steps > 1 else 0,
        optimizer=states.optimizer,
        activations=activations,
        logits=chunks + head,
        buffers=_gathered_layers(shape, batch, training),
        fragments=_fragments(activations + chunks, training.on_gpu),
    )


def _logits_chunks(shape: Shape, batch: Pass, on_gpu: bool) -> int:
    """Bytes of two chunks of logits, since one is computed before the last one is freed; in float32, and in the model's
    own type where that is another."""
    chunk = trained_head.CHUNK_BYTES["gpu" if on_gpu else "cpu"]
    rows = min(batch.responses, max(chunk // (FLOAT32 * shape.vocabulary), trained_head.FEWEST_ROWS))
    return 2 * rows * shape.vocabulary * (FLOAT32 + (batch.number_bytes if batch.number_bytes < FLOAT32 else 0))


def _at_the_update(shape: Shape, batch: Pass, training: TrainingSetup, states: States) -> Memory:
    """Memory with all gradients, which DeepSpeed copies to reduce them, or to update its float32 parameters."""
    trainable = trainable_parameters(shape, training)
    share = trainable // (training.workers if training.zero_stage >= 1 else 1)
    bucket = min(REDUCE_BUCKET, trainable) * batch.number_bytes
    return Memory(
        "the update",
        weights=states.weights,
        gradients=states.gradients,
        optimizer=states.optimizer,
        buffers=max(bucket, share * FLOAT32),
    )


def _gathered_layers(shape: Shape, batch: Pass, training: TrainingSetup) -> int:
    """Bytes of the layer that runs and of the next one, which ZeRO-3 gathers on every worker."""
    return 2 * shape.layer_parameters * batch.number_bytes if training.zero_stage == 3 else 0


def _activations(shape: Shape, batch: Pass, training: TrainingSetup) -> int:
    """Bytes that autograd keeps from the forward pass for the backward one."""
    inside = layer_activations(shape, batch, training) * batch.tokens
    entry = shape.width * batch.tokens * batch.number_bytes
    head = 2 * shape.width * batch.tokens * FLOAT32
    if training.gradient_checkpointing:
        return shape.layers * entry + inside + head  # one layer at a time runs again
    return shape.layers * inside + head


def layer_activations(shape: Shape, batch: Pass, training: TrainingSetup) -> int:
    """Bytes that autograd keeps for each token of one layer.

    Both norms keep their input in float32 and hand on their output; their scaled input is kept where their weights
    are trained. Attention keeps queries, keys, values, its output and a logsumexp for each head; a gated MLP its two
    branches, the activation and the product. Adapters keep their A's outputs. Rows that stand one after another attend
    each for itself, so attention's output is kept twice: row by row, and put together.
    """
    size, scaled = batch.number_bytes, training.adapters is None
    norms = 2 * (shape.width * (FLOAT32 + size + size * scaled) + FLOAT32)
    attention = (3 * shape.query_width + 2 * shape.key_width) * size + shape.heads * FLOAT32
    mlp = (4 if shape.gated else 2) * shape.mlp_width * size
    adapters = training.adapters.activations * size if training.adapters else 0
    return norms + attention + mlp + adapters
