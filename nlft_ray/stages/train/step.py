"""One optimizer step: forward, loss and backward over its micro-batches, and the update."""

import time
from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.distributed as dist
from torch import Tensor

from nlft_ray.config import TrainOptions
from nlft_ray.core.loss import normalise_by_example, normalise_by_weight, weighted_losses
from nlft_ray.errors import UserError
from nlft_ray.stages.train.batch import MicroBatch
from nlft_ray.stages.train.engine import Engine
from nlft_ray.stages.train.examples import Example
from nlft_ray.stages.train.metrics import StepMetrics
from nlft_ray.stages.train.order import Order, Split
from nlft_ray.stages.train.schedule import learning_rate


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
        rate = self._learning_rate(step)
        self._engine.set_learning_rate(rate)
        done = self._accumulate(step, batch)
        norm = self._update()
        likelihood, unlikelihood, anchor, examples, weighted_tokens = done.tolist()
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

    @torch.no_grad()
    def loss_of(self, examples: Sequence[Example]) -> float:
        """The loss of examples that are not trained on, as one batch. Every worker calls it with the same."""
        split = replace(self._split, batch_size=len(examples))
        self._engine.deepspeed.eval()
        total, divisor = torch.zeros((), device=self._engine.device), self._divisor(examples)
        for share in split.micro_batches(range(len(examples)), self._rank):
            micro = self._micro_batch([examples[index] for index in share if index is not None])
            total += self._losses(micro, divisor).sum()
        self._engine.deepspeed.train()
        dist.all_reduce(total)
        return float(total)

    def _learning_rate(self, step: int) -> float:
        return learning_rate(
            step,
            steps=self._order.steps,
            highest=self._options.learning_rate,
            schedule=self._options.schedule,
            warmup_fraction=self._options.warmup_fraction,
        )

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
        done = []
        for number, mine in enumerate(shares):
            if number:
                self._engine.deepspeed.step()  # within the accumulation: only counts
            micro = self._micro_batch(mine)
            if self._engine.dropout is not None:
                self._engine.dropout.set(micro.inputs, self._options.seed, step)
            worked = len(mine), len(micro.targets) if mine else 0
            counts = torch.tensor(worked, device=self._engine.device)
            done.append(torch.cat([self._backward(micro, divisor).double(), counts]))
        total = torch.stack(done).sum(0)
        dist.all_reduce(total)
        if not total.isfinite().all():
            self._refuse(step, shares, done)
        return total

    def _micro_batch(self, mine: Sequence[Example]) -> MicroBatch:
        return MicroBatch.of(mine, self._pad_id, packed=self._engine.packed).to(self._engine.device)

    def _backward(self, micro: MicroBatch, divisor: float) -> Tensor:
        """Loss and gradients of one micro-batch; (3,) its share of the parts of the step's loss."""
        parts = self._losses(micro, divisor)
        # The parts are sums over this micro-batch, divided already by what the whole step holds, so gradients must
        # simply add up. DeepSpeed would divide by the number of micro-batches, which scale_wrt_gas turns off, and
        # it averages over the workers instead of adding, which the factor undoes.
        self._engine.deepspeed.backward(parts.sum() * self._workers, scale_wrt_gas=False)
        return parts.detach()

    def _losses(self, micro: MicroBatch, divisor: float) -> Tensor:
        """(3,) what the weights raise, what they lower, and the anchor: the plain likelihood term."""
        losses = weighted_losses(self._engine.log_odds(micro), micro.likelihood, micro.unlikelihood)
        anchor = losses.likelihood * (micro.anchor / micro.likelihood.where(micro.likelihood > 0, 1.0))
        terms = (losses.likelihood - anchor, losses.unlikelihood, anchor)
        return torch.stack([self._normalise(term, micro, divisor) for term in terms]) * self._options.policy.loss_scale

    def _divisor(self, batch: Sequence[Example]) -> float:
        """What the sum over all examples of a step is divided by: their number, or all their weight."""
        return sum(example.weight for example in batch) if self._options.normalisation == "weight" else len(batch)

    def _normalise(self, losses: Tensor, micro: MicroBatch, divisor: float) -> Tensor:
        if self._options.normalisation == "weight":
            return normalise_by_weight(losses, divisor)
        return normalise_by_example(losses, micro.example, micro.tokens_per_example, int(divisor))

    def _update(self) -> float:
        """Take the optimizer's step; the norm of the gradient before it was limited."""
        engine = self._engine.deepspeed
        norm: float | Tensor | None = None
        if isinstance(engine.optimizer, torch.optim.Optimizer):  # without ZeRO in float32 DeepSpeed does not tell it
            norm = torch.nn.utils.get_total_norm(
                [parameter.grad for parameter in self._engine.trainable_parameters() if parameter.grad is not None]
            )
        engine.step()
        norm = engine.get_global_grad_norm() if norm is None else norm
        return float(norm) if norm is not None else float("nan")

    def _refuse(self, step: int, shares: Sequence[Sequence[Example]], done: Sequence[Tensor]) -> None:
        mine = [
            example.id
            for share, found in zip(shares, done, strict=True)
            if not found.isfinite().all()
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
