import math

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.functional import linear, logsigmoid

from nlft_ray.core.head import head_log_odds
from nlft_ray.core.logprobs import token_log_odds

V, D, M = 40, 6, 150  # more rows than the smallest chunk
SMALLEST_CHUNK = 1  # bytes: rounded up to the fewest rows


def operands(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)  # noqa: E731
    return draw(M, D), draw(V, D), draw(V), torch.randint(V, (M,), generator=generator)


@pytest.mark.parametrize("head_is_trained", [True, False])
@pytest.mark.parametrize("with_bias", [True, False])
def test_gradient_is_the_derivative(head_is_trained, with_bias):
    hidden, weight, bias, targets = operands()
    hidden, targets = hidden[:5].requires_grad_(), targets[:5]
    weight.requires_grad_(head_is_trained)
    bias = bias.requires_grad_(head_is_trained) if with_bias else None
    inputs = [tensor for tensor in (hidden, weight, bias) if tensor is not None and tensor.requires_grad]
    assert torch.autograd.gradcheck(lambda *_: head_log_odds(hidden, weight, bias, targets), inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("head_is_trained", [True, False])
@pytest.mark.parametrize("chunk_bytes", [SMALLEST_CHUNK, 2**24])
def test_value_and_gradients_equal_plain_float64(dtype, head_is_trained, chunk_bytes):
    hidden, weight, bias, targets = (tensor.detach() for tensor in operands(dtype))
    exact = [tensor.double().requires_grad_() for tensor in (hidden, weight, bias)]
    hidden.requires_grad_()
    weight.requires_grad_(head_is_trained)
    bias.requires_grad_(head_is_trained)
    upstream = torch.linspace(-1, 1, M)

    found = head_log_odds(hidden, weight, bias, targets, chunk_bytes)
    expected = token_log_odds(linear(*exact), targets)
    (found * upstream).sum().backward()
    (expected * upstream).sum().backward()

    assert found.dtype == torch.float32
    tolerance = 1e-5 if dtype == torch.float32 else 0.03
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)
    pairs = zip((hidden, weight, bias), exact, strict=True)
    for tensor, wanted in pairs if head_is_trained else [(hidden, exact[0])]:
        assert tensor.grad.dtype == dtype
        apart = (tensor.grad.double() - wanted.grad).norm() / wanted.grad.norm()
        assert apart < (1e-5 if dtype == torch.float32 else 0.01)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("head_is_trained", [True, False])
@pytest.mark.parametrize("lead", [20.0, 200.0, 9984.0, -20.0, -200.0, -9984.0])  # whole in bf16
def test_certainty_and_impossibility_stay_finite_and_right(dtype, head_is_trained, lead):
    """The target leads the four other tokens, or lags behind them; the head is the identity, so h are the logits."""
    hidden = torch.tensor([[lead, 0, 0, 0, 0]], dtype=dtype, requires_grad=True)
    weight = torch.eye(5, dtype=dtype, requires_grad=head_is_trained)
    log_odds = head_log_odds(hidden, weight, None, torch.tensor([0]))
    odds = lead - math.log(4)
    assert log_odds.item() == pytest.approx(odds, rel=1e-6)
    derivative = torch.tensor([[1.0, *[-0.25] * 4]])
    for log_p, sign in ((logsigmoid(log_odds), 1), (logsigmoid(-log_odds), -1)):
        (gradient,) = torch.autograd.grad(log_p.sum(), hidden, retain_graph=True)
        share = math.exp(-max(sign * odds, 0)) / (1 + math.exp(-abs(odds)))
        torch.testing.assert_close(gradient.float(), sign * share * derivative, rtol=1e-2, atol=0)


def test_the_only_possible_token_is_certain():
    """All other logits are minus infinity: by the bias, since a product with infinity is not a number."""
    hidden = torch.ones(1, 2, requires_grad=True)
    bias = torch.tensor([0.0, -math.inf])
    assert head_log_odds(hidden, torch.eye(2), bias, torch.tensor([0])).item() > 1e30
    assert head_log_odds(hidden, torch.eye(2), bias, torch.tensor([1])).item() == -math.inf


def test_no_logits_are_kept_for_backward():
    hidden, weight, _, targets = operands(torch.float32)
    hidden.requires_grad_()
    saved: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(tensor)
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        head_log_odds(hidden, weight, None, targets).sum().backward()
    assert [tuple(tensor.shape) for tensor in saved] == [(M, D)]


def test_no_rows_give_no_values():
    hidden = torch.zeros(0, D, requires_grad=True)
    values = head_log_odds(hidden, torch.ones(V, D), None, torch.zeros(0, dtype=torch.int64))
    assert values.shape == (0,)
    values.sum().backward()
    assert hidden.grad is not None
    assert hidden.grad.shape == (0, D)
