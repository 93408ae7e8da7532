"""The training loop of one worker, and one step of it, whoever started it: Ray, a test, or this process."""

import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace

import torch
import torch.distributed as dist
from torch import Tensor

from nlft_ray.config import TrainConfig, TrainOptions
from nlft_ray.core.loss import normalise_by_example, normalise_by_weight, weighted_losses
from nlft_ray.errors import UserError
from nlft_ray.models.loading import load_tokenizer
from nlft_ray.stages.train.checkpoints import Checkpoints, Progress
from nlft_ray.stages.train.engine import Engine, build_engine
from nlft_ray.stages.train.examples import Example, ExampleTable, MicroBatch
from nlft_ray.stages.train.metrics import MetricsLog, StepMetrics, add_note, check_epochs
from nlft_ray.stages.train.model import write_weights
from nlft_ray.stages.train.schedule import Order, Split, learning_rate, order_of
from nlft_ray.stages.train.weighing import HELD_OUT, TRAINED
from nlft_ray.storage.folder import Folder
from nlft_ray.tables.training import WEIGHED_EXAMPLES


def train_worker(config: TrainConfig, checkpoints: Checkpoints) -> dict[str, float]:
    """Train from the newest checkpoint (or from the start) to the end, and write the weights.

    Returns:
        What the manifest is to count of the model: the share of its parameters that adapters change, if it has any.

    Raises:
        UserError: the model or the settings do not allow it; every worker raises the same.
    """
    output, is_first = Folder(config.output), dist.get_rank() == 0
    # What fails on one worker's machine fails on all: none waits for another.
    with checkpoints.all_or_none("the weighed examples cannot be read"):
        examples, held_out, pad_id = _prepare(config, output)
    order = order_of(config, len(examples))
    split = Split(dist.get_world_size(), config.micro_batch_size_per_worker, min(config.batch_size, len(examples)))
    engine = build_engine(config, split.micro_steps)
    stepper = Stepper(engine, config, examples, order, split, pad_id)
    if is_first:
        note_ways(engine, config.packed, output)
    # Order, learning rates and dropout follow from the seed and the step: that, the states and the record are all.
    progress = checkpoints.restore(engine) or Progress.at_start(config.seed)
    with checkpoints.all_or_none("the record of the steps cannot be written"):
        record = MetricsLog(output, progress.metrics) if is_first else None
    with record or nullcontext() as log:
        for step in range(progress.steps_done, order.steps):
            metrics = stepper.take(step)
            if held_out and order.is_due(step, config.held_out_every_steps):
                metrics = replace(metrics, held_out_loss=stepper.loss_of(held_out))
            if log:
                log.add(metrics)
            # after the last step there is nothing to resume: the weights themselves come next
            if step + 1 < order.steps and order.is_due(step, config.checkpoint_every_steps):
                checkpoints.save(engine, step + 1, config.seed, log.lines if log else [])
        checkpoints.finish()
        with checkpoints.all_or_none("the record of the steps is not whole"):
            if log:
                log.finish()
                check_epochs(log.lines, order, examples.weighted_tokens)
    with checkpoints.all_or_none("the weights cannot be written"):
        parameters = engine.gather_parameters(trained_only=config.lora is not None)
        if is_first:  # it writes when all have done their part: who fails before lets nobody wait
            write_weights(engine.model, parameters, output)
    return {} if engine.adapted_share is None else {"adapted_share": engine.adapted_share}


def _prepare(config: TrainConfig, output: Folder) -> tuple[ExampleTable, Sequence[Example], int]:
    """The examples, those held out, and the id to pad with."""
    folder = output / WEIGHED_EXAMPLES
    held_out = ExampleTable(folder, HELD_OUT) if config.held_out else []
    tokenizer = load_tokenizer(config.model)
    # Any id will do, since padding is masked.
    pad_id = next((id for id in (tokenizer.pad_token_id, tokenizer.eos_token_id) if id is not None), 0)
    return ExampleTable(folder, TRAINED), held_out, pad_id


def note_ways(engine: Engine, packed: bool, output: Folder) -> None:
    """Say which shortcuts this model does not allow, with which the result would be the same, and what adapters leave.

    `packed` is what was asked for.
    """
    if packed and not engine.packed:
        add_note(output, "this model mixes rows that stand one after another, so they are padded: that takes longer")
    if engine.head is None:
        add_note(
            output,
            "this model's LM head cannot be asked for log-odds, so all logits are made at once: that takes memory",
        )
    if engine.adapted_share is not None and engine.adapted_share < 0.5:
        add_note(
            output,
            f"adapters change {engine.adapted_share:.0%} of the language model's parameters; the rest, such as experts "
            "that take none, stays as it is",
        )


class Stepper:
    """Takes optimizer steps. Every worker has one and takes the same steps; each works on its own examples."""

    def __init__(
        self,
        engine: Engine,
        options: TrainOptions,
        examples: Sequence[Example],
        order: Order,
        split: Split,
        pad_id: int,
    ):
        self._engine, self._options, self._examples = engine, options, examples
        self._order, self._split, self._pad_id = order, split, pad_id
        self._rank, self._workers = dist.get_rank(), dist.get_world_size()

    def take(self, step: int) -> StepMetrics:
        """Take step `step` (from 0).

        Raises:
            UserError: the loss is not finite, on any worker; all raise it.
        """
        began = time.monotonic()
        batch = sorted(
            (self._examples[index] for index in self._order.batch(step)), key=lambda row: -len(row.input_ids)
        )
        likelihood, unlikelihood, anchor, examples, weighted_tokens = self._accumulate(step, batch).tolist()
        rate = learning_rate(
            step,
            steps=self._order.steps,
            highest=self._options.learning_rate,
            schedule=self._options.schedule,
            warmup_fraction=self._options.warmup_fraction,
        )
        norm = self._engine.step(rate)
        return StepMetrics(
            step=step + 1,
            epoch=self._order.epoch(step) + 1,
            loss=likelihood + unlikelihood + anchor,
            loss_likelihood=likelihood,
            loss_unlikelihood=unlikelihood,
            loss_anchor=anchor,
            gradient_norm=norm,
            learning_rate=rate,
            examples=int(examples),
            weighted_tokens=int(weighted_tokens),
            workers=self._workers,
            seconds=time.monotonic() - began,
        )

    def loss_of(self, examples: Sequence[Example]) -> float:
        """The loss of examples that are not trained on, as one batch. Every worker calls it with the same."""
        split = replace(self._split, batch_size=len(examples))
        total, divisor = torch.zeros((), device=self._engine.device), self._divisor(examples)
        with self._engine.evaluation():
            for share in split.micro_batches(range(len(examples)), self._rank):
                micro = self._micro_batch([examples[index] for index in share if index is not None])
                total += self._losses(micro, divisor).sum()
        dist.all_reduce(total)
        return float(total)

    def _accumulate(self, step: int, batch: Sequence[Example]) -> Tensor:
        """Add up the gradients of this worker's micro-batches.

        Returns:
            (5,) float64, over all workers: the parts of the loss, and the examples and weighted tokens worked on.
        """
        divisor = self._divisor(batch)
        shares = [
            [batch[index] for index in slots if index is not None]
            for slots in self._split.micro_batches(range(len(batch)), self._rank)
        ]
        sums = []
        for number, share in enumerate(shares):
            micro = self._micro_batch(share)
            if self._engine.dropout is not None:
                self._engine.dropout.set(micro.inputs, self._options.seed, step)
            # The parts are divided already by what the whole step holds, so gradients simply add up.
            parts = self._losses(micro, divisor)
            self._engine.backward(parts.sum(), last=number == len(shares) - 1)
            counts = torch.tensor((len(share), len(micro.targets) if share else 0), device=self._engine.device)
            sums.append(torch.cat([parts.detach().double(), counts]))
        total = torch.stack(sums).sum(0)
        dist.all_reduce(total)
        if not total.isfinite().all():
            self._refuse(step, shares, sums)
        return total

    def _micro_batch(self, share: Sequence[Example]) -> MicroBatch:
        return MicroBatch.of(share, self._pad_id, packed=self._engine.packed).to(self._engine.device)

    def _losses(self, micro: MicroBatch, divisor: float) -> Tensor:
        """(3,) a micro-batch's part of the step's loss: what the weights raise, what they lower, and the anchor, the
        plain likelihood term. Here the policy's weights, its `loss_scale` and the normalisation come together."""
        losses = weighted_losses(self._engine.log_odds(micro), micro.likelihood, micro.unlikelihood)
        anchor = losses.likelihood * (micro.anchor / micro.likelihood.where(micro.likelihood > 0, 1.0))
        terms = (losses.likelihood - anchor, losses.unlikelihood, anchor)
        return torch.stack([self._normalise(term, micro, divisor) for term in terms]) * self._options.policy.loss_scale

    def _divisor(self, batch: Sequence[Example]) -> float:
        """The divisor of the sum over all examples of a step: their number, or all their weight."""
        return sum(example.weight for example in batch) if self._options.normalisation == "weight" else len(batch)

    def _normalise(self, losses: Tensor, micro: MicroBatch, divisor: float) -> Tensor:
        if self._options.normalisation == "weight":
            return normalise_by_weight(losses, divisor)
        return normalise_by_example(losses, micro.example, micro.tokens_per_example, int(divisor))

    def _refuse(self, step: int, shares: Sequence[Sequence[Example]], sums: Sequence[Tensor]) -> None:
        mine = [
            example.id
            for share, sum_ in zip(shares, sums, strict=True)
            if not sum_.isfinite().all()
            for example in share
        ]
        ids: list[list[str]] = [[] for _ in range(self._workers)]
        dist.all_gather_object(ids, mine)
        rows = sorted(id for of_worker in ids for id in of_worker)
        raise UserError(
            f"train: the loss of step {step + 1} is not a finite number. It comes from the rows "
            f"{', '.join(rows)}. Lower learning_rate, or set model.dtype=float32; "
            "if it is the first step, look at these rows."
        )
