"""The training loop of one worker: it knows torch.distributed and DeepSpeed, but not who started it."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace

import torch.distributed as dist

from nlft_ray.config import TrainConfig
from nlft_ray.errors import UserError
from nlft_ray.models.loading import load_tokenizer, max_length
from nlft_ray.stages.train.checkpoints import Checkpoints, Progress
from nlft_ray.stages.train.engine import Engine, build_engine
from nlft_ray.stages.train.example_table import ExampleTable
from nlft_ray.stages.train.examples import Example, Weighing
from nlft_ray.stages.train.metrics import MetricsLog, check_epochs
from nlft_ray.stages.train.order import Order, Split, order_of
from nlft_ray.stages.train.step import Stepper
from nlft_ray.stages.train.watch import add_note
from nlft_ray.stages.train.weights import write_weights
from nlft_ray.storage.folder import Folder


def train_worker(config: TrainConfig, checkpoints: Checkpoints) -> None:
    """Train from the newest checkpoint (or from the start) to the end, and write the weights.

    Raises:
        UserError: the table, the model or the settings do not allow it; every worker raises the same.
    """
    examples, held_out, pad_id = _prepare(config)
    order = order_of(config, len(examples))
    workers = dist.get_world_size()
    split = Split(workers, config.micro_batch_size_per_worker, min(config.batch_size, len(examples)))
    engine = build_engine(config, split.micro_steps)
    stepper = Stepper(engine, config, examples, order, split, pad_id)
    output = Folder(config.output)
    if dist.get_rank() == 0:
        note_slower_ways(engine, config.packed, output)
    # Order, learning rates and dropout follow from the seed and the step: that, the states and the record are all.
    progress = checkpoints.restore(engine.deepspeed) or Progress.at_start(config.seed)
    with checkpoints.all_or_none("the record of the steps cannot be written"):
        record = MetricsLog(output, progress.metrics) if dist.get_rank() == 0 else None
    with record or nullcontext() as log:
        for step in range(progress.steps_done, order.steps):
            metrics = stepper.take(step)
            if held_out and _is_due(config.held_out_every_steps, order, step):
                metrics = replace(metrics, held_out_loss=stepper.loss_of(held_out))
            if log:
                log.add(metrics)
            # after the last step there is nothing to resume: the weights themselves come next
            if step + 1 < order.steps and _is_due(config.checkpoint_every_steps, order, step):
                checkpoints.save(engine.deepspeed, step + 1, config.seed, log.lines if log else [])
        checkpoints.finish()
        with checkpoints.all_or_none("the record of the steps is not whole"):
            if log:
                log.finish()
                check_epochs(log.lines, order, examples.weighted_tokens)
    with checkpoints.all_or_none("the weights cannot be written"):
        write_weights(engine, output, adapters=config.lora is not None)


def load_examples(config: TrainConfig, table: str | None = None) -> ExampleTable:
    """The examples of a table, the input by default."""
    weighing = Weighing(config.policy, max_length(config.model))
    return ExampleTable(weighing.examples(Folder(table or config.input)))


def _prepare(config: TrainConfig) -> tuple[ExampleTable, Sequence[Example], int]:
    """The examples, those held out, and the id to pad with.

    What fails on one worker's machine fails on all: none waits for another.
    """
    prepared, problem = None, None
    try:
        held_out = load_examples(config, config.held_out) if config.held_out else []
        prepared = load_examples(config), held_out, _pad_id(config)
    except UserError as error:
        problem = str(error)
    problems: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(problems, problem)
    if prepared is None or any(problems):
        raise UserError(next(found for found in problems if found))
    return prepared


def _pad_id(config: TrainConfig) -> int:
    """Any id will do, since padding is masked."""
    tokenizer = load_tokenizer(config.model)
    return next((found for found in (tokenizer.pad_token_id, tokenizer.eos_token_id) if found is not None), 0)


def note_slower_ways(engine: Engine, packed: bool, output: Folder) -> None:
    """Say which shortcuts this model does not allow; the result is the same. `packed` is what was asked for."""
    if packed and not engine.packed:
        add_note(output, "this model mixes rows that stand one after another, so they are padded: that takes longer")
    if engine.head is None:
        add_note(
            output,
            "this model's LM head cannot be asked for log-odds, so all logits are made at once: that takes memory",
        )


def _is_due(every_steps: int | None, order: Order, step: int) -> bool:
    """Whether what happens every so many steps, or by default once an epoch, does after this one."""
    if every_steps is None:
        return order.ends_epoch(step) or step + 1 == order.steps
    return (step + 1) % every_steps == 0
