import math
from itertools import pairwise

import pytest
import torch
from torch.nn.functional import cross_entropy

from nlft_ray.core.alignment import pad_batch
from nlft_ray.core.logprobs import token_log_odds
from nlft_ray.core.loss import (
    normalise_by_example,
    normalise_by_weight,
    weighted_losses,
)
from nlft_ray.core.policies.sft import Sft

VOCABULARY = 17
ROWS = [([3, 1, 4, 1, 5, 9], 2), ([2, 7, 1], 1), ([8, 2, 8, 1, 8], 4)]
LENGTHS = torch.tensor([len(ids) - start for ids, start in ROWS])
EXAMPLE = torch.repeat_interleave(torch.arange(len(ROWS)), LENGTHS)


def toy_logits(batch):
    """(B, T, V) logits of a causal toy model: each position sees itself and those before it."""
    generator = torch.Generator().manual_seed(1)
    table = torch.randn(VOCABULARY, VOCABULARY, generator=generator)
    return table[batch.input_ids.clamp(0, VOCABULARY - 1)].cumsum(1).requires_grad_()


def token_losses(logits, targets, likelihood, unlikelihood):
    return weighted_losses(token_log_odds(logits, targets), likelihood, unlikelihood)


def losses_of(batch, likelihood, unlikelihood, logits=None):
    logits = toy_logits(batch) if logits is None else logits
    return token_losses(logits[batch.keep], batch.targets, likelihood, unlikelihood)


def test_uniform_logits_in_closed_form():
    losses = token_losses(
        torch.zeros(3, 8, dtype=torch.bfloat16),
        torch.tensor([0, 3, 7]),
        likelihood=torch.tensor([1.0, 0.0, 2.0]),
        unlikelihood=torch.tensor([0.0, 3.0, 0.0]),
    )
    raised, lowered = math.log(8), -math.log(7 / 8)
    torch.testing.assert_close(losses.likelihood, torch.tensor([raised, 0.0, 2 * raised]))
    torch.testing.assert_close(losses.unlikelihood, torch.tensor([0.0, 3 * lowered, 0.0]))
    assert losses.total.mean().item() == pytest.approx((3 * raised + 3 * lowered) / 3)


def test_a_weight_of_zero_gives_exactly_zero_even_at_certainty():
    # the only token that is possible: log(1 - p) is minus infinity
    logits = torch.tensor([[5.0, -math.inf]])
    losses = token_losses(logits, torch.tensor([0]), torch.ones(1), torch.zeros(1))
    assert losses.likelihood.item() == 0.0
    assert losses.unlikelihood.item() == 0.0


def test_weights_are_constants_for_the_gradient():
    likelihood = torch.ones(2, dtype=torch.float64, requires_grad=True)
    unlikelihood = torch.ones(2, dtype=torch.float64, requires_grad=True)
    logits = torch.randn(2, 5, requires_grad=True)
    losses = token_losses(logits, torch.tensor([0, 1]), likelihood, unlikelihood)
    assert losses.total.dtype == torch.float32
    losses.total.sum().backward()
    assert likelihood.grad is None
    assert unlikelihood.grad is None
    assert logits.grad is not None
    assert logits.grad.abs().sum() > 0


@pytest.mark.parametrize("lowered", [False, True])
@pytest.mark.parametrize(("row", "token"), [(row, t) for row in range(3) for t in range(int(LENGTHS[row]))])
def test_a_weight_lands_on_its_own_token(row, token, lowered):
    """Only the logits that predict the weighted token get a gradient: first and last tokens included."""
    batch = pad_batch(ROWS, pad_id=0)
    logits = toy_logits(batch)
    weight = torch.zeros(len(batch.targets))
    weight[int(LENGTHS[:row].sum()) + token] = 1.0
    nothing = torch.zeros_like(weight)
    losses = losses_of(batch, nothing if lowered else weight, weight if lowered else nothing, logits)
    (gradient,) = torch.autograd.grad(losses.total.sum(), logits)

    ids, response_start = ROWS[row]
    position = response_start + token - 1
    assert gradient.abs().sum(-1).nonzero().tolist() == [[row, position]]
    # raising lowers the loss with the token's own logit, lowering does the opposite; no other logit goes its way
    own = gradient[row, position, ids[response_start + token]]
    assert (own > 0) == lowered
    others = gradient[row, position].sign().sum().abs()
    assert others == VOCABULARY - 2


def test_sft_is_plain_cross_entropy():
    batch = pad_batch(ROWS, pad_id=0)
    weights = [Sft().weigh_tokens(int(n)) for n in LENGTHS]
    likelihood = torch.cat([torch.from_numpy(weight.likelihood) for weight in weights])
    unlikelihood = torch.cat([torch.from_numpy(weight.unlikelihood) for weight in weights])
    logits = toy_logits(batch)
    losses = losses_of(batch, likelihood, unlikelihood, logits)
    loss = normalise_by_example(losses.total, EXAMPLE, LENGTHS, examples_in_step=3)

    expected = torch.stack(
        [
            cross_entropy(logits[row, start - 1 : len(ids) - 1], torch.tensor(ids[start:]))
            for row, (ids, start) in enumerate(ROWS)
        ]
    ).mean()
    torch.testing.assert_close(loss, expected)
    (gradient,) = torch.autograd.grad(loss, logits, retain_graph=True)
    (expected_gradient,) = torch.autograd.grad(expected, logits)
    torch.testing.assert_close(gradient, expected_gradient)


@pytest.mark.parametrize("pad_id", [0, 8, 16])
def test_padding_and_company_change_nothing(pad_id):
    together = pad_batch(ROWS, pad_id)
    count = len(together.targets)
    likelihood, unlikelihood = torch.linspace(0, 1, count), torch.linspace(1, 0, count)
    losses = losses_of(together, likelihood, unlikelihood)
    parts = []
    for row in range(3):
        mine = row == EXAMPLE
        parts.append(losses_of(pad_batch(ROWS[row : row + 1], 1), likelihood[mine], unlikelihood[mine]))
    torch.testing.assert_close(losses.likelihood, torch.cat([part.likelihood for part in parts]))
    torch.testing.assert_close(losses.unlikelihood, torch.cat([part.unlikelihood for part in parts]))


@pytest.mark.parametrize("cuts", [[0, 3], [0, 1, 3], [0, 2, 3], [0, 1, 2, 3]])
def test_uneven_micro_batches_add_up_to_the_step(cuts):
    lengths = torch.tensor([4, 1, 7])
    losses = torch.arange(1.0, 13.0)
    example = torch.repeat_interleave(torch.arange(3), lengths)
    by_example, by_weight = torch.zeros(()), torch.zeros(())
    for first, last in pairwise(cuts):
        mine = (example >= first) & (example < last)
        by_example += normalise_by_example(losses[mine], example[mine] - first, lengths[first:last], 3)
        by_weight += normalise_by_weight(losses[mine], weight_in_step=20.0)
    parts = losses.split(lengths.tolist())
    torch.testing.assert_close(by_example, torch.stack([part.mean() for part in parts]).mean())
    assert by_example.item() == pytest.approx((2.5 + 5 + 9) / 3)
    assert by_weight.item() == pytest.approx(78 / 20)
