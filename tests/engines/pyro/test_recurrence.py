"""The time loop of one layer against torch's own layers and finite differences, in float64."""

import numpy as np
import pytest
import torch
from torch import nn

from guidebook.engines.pyro.recurrence import gru, lstm

torch.set_num_threads(1)
B, T, E, H = 3, 5, 4, 6
CLOSE = {"rtol": 1e-10, "atol": 1e-12}
kinds = pytest.mark.parametrize("kind", ["lstm", "gru"])


def close(ours, reference):
    np.testing.assert_allclose(ours.detach().numpy(), reference, **CLOSE)


@kinds
def test_lstm_and_gru_agree_with_torch(kind):
    torch.manual_seed(0)
    theirs = {"lstm": nn.LSTM, "gru": nn.GRU}[kind](E, H).double()
    x = torch.randn(T, B, E, dtype=torch.float64)
    zero = torch.zeros(1, B, H, dtype=torch.float64)
    projected = x @ theirs.weight_ih_l0.t()
    constant = (theirs.bias_ih_l0 + (theirs.bias_hh_l0 if kind == "lstm" else 0)).expand(1, B, -1)
    if kind == "lstm":
        ours = lstm(projected, constant, zero, zero, theirs.weight_hh_l0)
    else:
        ours = gru(projected, constant, zero, theirs.weight_hh_l0, theirs.bias_hh_l0)
    reference = theirs(x)[0]
    close(ours[:, 0], reference.detach().numpy())
    probe = torch.randn_like(reference)
    wanted = torch.autograd.grad((reference * probe).sum(), list(theirs.parameters()))
    found = torch.autograd.grad((ours[:, 0] * probe).sum(), list(theirs.parameters()))
    for one, other in zip(found, wanted, strict=True):
        close(one, other.numpy())


@kinds
def test_time_loop_has_exact_gradients(kind):
    def draw(*shape):
        return torch.randn(*shape, dtype=torch.float64, requires_grad=True)

    torch.manual_seed(0)
    gates = {"lstm": 4, "gru": 3}[kind] * 3
    common = (draw(3, 2, gates), draw(2, 2, gates), draw(2, 2, 3))
    if kind == "lstm":
        assert torch.autograd.gradcheck(lstm, (*common, draw(2, 2, 3), draw(gates, 3)))
    else:
        assert torch.autograd.gradcheck(gru, (*common, draw(gates, 3), draw(gates)))
