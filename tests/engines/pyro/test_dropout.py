"""Dropout: rate, scale and gradient."""

import pytest
import torch

from guidebook.engines.pyro.dropout import dropped

torch.set_num_threads(1)


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5])
def test_dropout_is_its_definition(rate):
    """Each of 4 strides within 6 standard errors of the rate: a false alarm in 40 million runs."""
    torch.manual_seed(0)
    x = torch.full((400, 1001), 2.0, requires_grad=True)
    y = dropped(x, rate)
    assert set(y.unique().tolist()) <= {0.0, torch.tensor(2 / (1 - round(rate * 2**16) / 2**16)).item()}
    for stride in range(4):
        zero = (y.flatten()[stride::4] == 0).double()
        assert abs(zero.mean() - rate) <= 6 * (rate * (1 - rate) / len(zero)) ** 0.5 + 2**-17
    (gradient,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(gradient * 2, y)
