"""Log-probabilities in float64, from logits of any precision."""

import pytest
import torch

from rome_lens.backends.likelihood import log_probabilities, normalisers


def drawn(dtype):
    return (torch.randn(3, 5, 1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 20).to(dtype)


@pytest.mark.parametrize(
    ("dtype", "most"),
    [(torch.float64, 1e-13), (torch.float32, 1e-7), (torch.bfloat16, 1e-7), (torch.float16, 1e-7)],
)
def test_they_are_those_of_a_softmax_in_float64(dtype, most):
    logits = drawn(dtype)
    ids = torch.arange(15).reshape(3, 5) * 60
    expected = logits.double().log_softmax(dim=-1).gather(-1, ids[..., None])[..., 0]
    found = log_probabilities(logits, ids)
    assert found.dtype == normalisers(logits).dtype == torch.float64
    assert (found - expected).abs().max() <= most


def test_gradients_pass():
    logits = drawn(torch.float32).requires_grad_()
    normalisers(logits).sum().backward()
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, logits.detach().softmax(dim=-1), rtol=1e-5, atol=1e-9)


def test_what_is_impossible_and_what_is_no_number():
    logits = torch.tensor([[0.0, -torch.inf], [0.0, torch.nan], [0.0, torch.inf]])
    found = log_probabilities(logits, torch.tensor([1, 0, 0]))
    assert found[0] == -torch.inf
    assert found[1:].isnan().all()
