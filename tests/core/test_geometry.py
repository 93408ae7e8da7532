import pytest
import torch
from torch.nn.functional import cosine_similarity

from nlft_ray.core.geometry import hidden_geometry


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_norms_and_cosines_to_the_next_tokens(dtype):
    hidden = (torch.randn(12, 2048, generator=torch.Generator().manual_seed(0)) + 0.5).to(dtype)
    norm, cos = hidden_geometry(hidden, window=4)
    exact = hidden.double()
    assert norm.dtype == cos.dtype == torch.float32
    torch.testing.assert_close(norm.double(), exact.norm(dim=1), rtol=1e-5, atol=0)
    assert cos.shape == (12, 4)
    for t in range(12):
        for k in range(4):
            expected = cosine_similarity(exact[t], exact[t + k + 1], dim=0) if t + k + 1 < 12 else 0.0
            assert cos[t, k].item() == pytest.approx(float(expected), abs=1e-5)


@pytest.mark.parametrize(("n", "window"), [(1, 3), (2, 8), (3, 0)])
def test_windows_beyond_the_end_hold_zeros(n, window):
    norm, cos = hidden_geometry(torch.ones(n, 4), window)
    assert norm.tolist() == [2.0] * n
    assert cos.shape == (n, window)
    assert cos.sum().item() == pytest.approx(sum(min(window, n - 1 - t) for t in range(n)))


def test_a_zero_state_has_cosine_zero():
    norm, cos = hidden_geometry(torch.tensor([[0.0, 0.0], [1.0, 0.0], [3.0, 4.0]]), window=2)
    assert norm.tolist() == [0.0, 1.0, 5.0]
    torch.testing.assert_close(cos, torch.tensor([[0.0, 0.0], [0.6, 0.0], [0.0, 0.0]]))
