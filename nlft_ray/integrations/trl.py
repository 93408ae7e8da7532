"""Weighted and signed tokens in TRL's SFTTrainer, or any trainer of transformers.

    loss = TokenWeightLoss()
    SFTTrainer(
        model,
        args=SFTConfig(remove_unused_columns=False, max_length=None, …),
        train_dataset=load_dataset("parquet", data_dir="runs/my/weights/data", split="train"),
        data_collator=TokenWeightCollator(pad_token_id),
        compute_loss_func=loss,
        callbacks=[loss],
    )

Labels alone reach a trainer's loss function, so the weights travel beside the model's inputs; as a callback the loss
takes them out before the model sees them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from nlft_ray.core.logprobs import token_log_odds
from nlft_ray.core.loss import normalise_by_example, weighted_losses

_WEIGHTS = "token_weights"
_NO_LABEL = -100


@dataclass(frozen=True)
class TokenWeightCollator:
    """Batches of rows of a table that `nlft-ray weights` wrote, padded on the right."""

    pad_token_id: int
    """Any id: padding is masked, and has no label."""

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """(B, T) `input_ids`, `attention_mask`, `labels`, and `token_weights` with their signs.

        Raises:
            ValueError: a row's columns differ in length, as a trainer leaves them that truncates some of them.
        """
        for row in rows:
            lengths = {name: len(row[name]) for name in ("input_ids", "labels", "weights", "signs")}
            if len(set(lengths.values())) > 1:
                raise ValueError(f"row {row.get('id')}: columns of different lengths {lengths}; set max_length=None")
        signed = [[weight * sign for weight, sign in zip(row["weights"], row["signs"], strict=True)] for row in rows]
        return {
            "input_ids": _padded([row["input_ids"] for row in rows], self.pad_token_id, torch.long),
            "attention_mask": _padded([[1] * len(row["input_ids"]) for row in rows], 0, torch.long),
            "labels": _padded([row["labels"] for row in rows], _NO_LABEL, torch.long),
            _WEIGHTS: _padded(signed, 0.0, torch.float32),
        }


def _padded(rows: Sequence[Sequence[float]], value: float, dtype: torch.dtype) -> Tensor:
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[value] * (longest - len(row))] for row in rows], dtype=dtype)


class TokenWeightLoss(TrainerCallback):
    """The loss of nlft-ray's training: a mean over each example's labels, then over the optimizer step's examples.

    A step counts as the trainer's batch sizes say, so in the last, smaller one of an epoch each example weighs what it
    weighs in the others.
    """

    def __init__(self) -> None:
        self._weights: Tensor | None = None
        self._examples_in_step: int | None = None
        self._hook: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **others: Any) -> None:
        """Learn the size of a step, and take the weights out of the model's inputs from now on."""
        self._examples_in_step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        self._hook = model.register_forward_pre_hook(self._take, with_kwargs=True)

    def on_train_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """Leave the model as it was."""
        self._hook.remove()

    def _take(self, model: Any, positional: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if _WEIGHTS in named:
            self._weights = named[_WEIGHTS]
            named = {name: value for name, value in named.items() if name != _WEIGHTS}
        return positional, named

    def __call__(self, outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
        """The loss of a micro-batch. `num_items_in_batch`, a count of labels, is no part of it.

        Raises:
            RuntimeError: it is no callback of the trainer, or the batch has no weights.
        """
        if self._examples_in_step is None or self._weights is None:
            raise RuntimeError(
                "no token weights came with the batch: give TokenWeightLoss to `callbacks` too, TokenWeightCollator to "
                "`data_collator`, and set remove_unused_columns=False"
            )
        weights, targets = self._weights[:, 1:], labels[:, 1:]
        example, position = (weights != 0).nonzero(as_tuple=True)
        weights, targets = weights[example, position], targets[example, position]
        losses = weighted_losses(
            token_log_odds(outputs.logits[example, position], targets), weights.clamp(min=0), (-weights).clamp(min=0)
        )
        tokens_per_example = (labels[:, 1:] != _NO_LABEL).sum(1).clamp(min=1)
        return normalise_by_example(losses.total, example, tokens_per_example, self._examples_in_step)
