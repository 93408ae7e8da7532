import math

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.functional import logsigmoid

from nlft_ray.core.logprobs import token_log_odds


def random_logits(n=7, vocabulary=11, scale=4.0, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = (scale * torch.randn(n, vocabulary, generator=generator, dtype=torch.float64)).to(dtype)
    return logits, torch.randint(vocabulary, (n,), generator=generator)


def token_logprobs(*arguments, **named):
    return logsigmoid(token_log_odds(*arguments, **named))


def token_log_one_minus_p(*arguments, **named):
    return logsigmoid(-token_log_odds(*arguments, **named))


def plain_logprobs(logits, targets):
    return logits.log_softmax(-1).gather(1, targets[:, None]).squeeze(1)


def plain_log_one_minus_p(logits, targets):
    return torch.log1p(-plain_logprobs(logits, targets).exp())


BOTH = pytest.mark.parametrize(
    ("function", "plain"),
    [(token_logprobs, plain_logprobs), (token_log_one_minus_p, plain_log_one_minus_p)],
)


@BOTH
@pytest.mark.parametrize("chunk_size", [1, 3, 7, 100])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_value_and_gradient_equal_plain_float64(function, plain, chunk_size, dtype):
    logits, targets = random_logits(dtype=dtype)
    before = logits.clone()
    exact = logits.double().requires_grad_()
    logits.requires_grad_()
    upstream = torch.arange(1.0, 8.0)

    values, expected = function(logits, targets, chunk_size), plain(exact, targets)
    assert values.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(values.double(), expected, rtol=1e-5, atol=1e-6)

    (values * upstream).sum().backward()
    (expected * upstream).sum().backward()
    assert logits.grad.dtype == dtype
    tolerance = 4e-3 if dtype == torch.bfloat16 else 1e-5  # the gradient is rounded to bf16, half a unit of 2^-7
    torch.testing.assert_close(logits.grad.double(), exact.grad, rtol=tolerance, atol=1e-6)
    assert torch.equal(logits.detach(), before)


def test_gradient_is_the_derivative():
    logits, targets = random_logits(n=3, vocabulary=5)
    assert torch.autograd.gradcheck(lambda z: token_log_odds(z, targets, 2), logits.requires_grad_())


@BOTH
def test_uniform_logits_in_closed_form(function, plain):
    vocabulary = 64
    p = 1 / vocabulary
    expected = math.log(p) if function is token_logprobs else math.log(1 - p)
    logits = torch.full((3, vocabulary), 2.5, dtype=torch.bfloat16)
    torch.testing.assert_close(function(logits, torch.tensor([0, 5, 63])), torch.full((3,), expected))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("lead", [20.0, 200.0, 9984.0])  # whole in bf16; a float32 p is exactly 1
def test_certainty_stays_finite_and_right(dtype, lead):
    """Token 0 leads the four others."""
    logits = torch.tensor([[lead, 0, 0, 0, 0]], dtype=dtype, requires_grad=True)
    target = torch.tensor([0])
    odds = lead - math.log(4)
    log_p, log_rest = token_logprobs(logits, target), token_log_one_minus_p(logits, target)
    assert log_p.item() == pytest.approx(-math.exp(-odds), rel=1e-5)
    assert log_rest.item() == pytest.approx(-odds, rel=1e-6)
    (of_log_rest,) = torch.autograd.grad(log_rest.sum(), logits)
    torch.testing.assert_close(of_log_rest, torch.tensor([[-1, *[0.25] * 4]], dtype=dtype))
    (of_log_p,) = torch.autograd.grad(log_p.sum(), logits)
    expected = math.exp(-odds) * torch.tensor([[1, *[-0.25] * 4]])
    torch.testing.assert_close(of_log_p.float(), expected, rtol=1e-2, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("lag", [20.0, 200.0, 9984.0])
def test_impossibility_stays_finite_and_right(dtype, lag):
    """Token 0 lags behind the four others."""
    logits = torch.tensor([[-lag, 0, 0, 0, 0]], dtype=dtype, requires_grad=True)
    target = torch.tensor([0])
    odds = -lag - math.log(4)
    log_p, log_rest = token_logprobs(logits, target), token_log_one_minus_p(logits, target)
    assert log_p.item() == pytest.approx(odds, rel=1e-6)
    assert log_rest.item() == pytest.approx(-math.exp(odds), rel=1e-5)
    (of_log_p,) = torch.autograd.grad(log_p.sum(), logits)
    torch.testing.assert_close(of_log_p, torch.tensor([[1, *[-0.25] * 4]], dtype=dtype))
    (of_log_rest,) = torch.autograd.grad(log_rest.sum(), logits)
    expected = -math.exp(odds) * torch.tensor([[1, *[-0.25] * 4]])
    torch.testing.assert_close(of_log_rest.float(), expected, rtol=1e-2, atol=0)


def test_no_float32_copy_of_all_logits_is_kept_for_backward():
    logits, targets = random_logits(n=64, vocabulary=32, dtype=torch.bfloat16)
    logits.requires_grad_()
    saved: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(tensor)
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        token_logprobs(logits, targets, chunk_size=8).sum()
    large = [tensor for tensor in saved if tensor.numel() >= logits.numel()]
    assert [tensor.data_ptr() for tensor in large] == [logits.data_ptr()]


def test_no_rows_give_no_values():
    logits = torch.zeros(0, 5, requires_grad=True)
    values = token_logprobs(logits, torch.zeros(0, dtype=torch.int64))
    assert values.shape == (0,)
    values.sum().backward()
    assert logits.grad is not None
    assert logits.grad.shape == (0, 5)
