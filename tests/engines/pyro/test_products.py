"""Products inside a loop over time: values and gradients are those of autograd's own, step by step."""

from contextlib import nullcontext

import pytest
import torch

from guidebook.engines.pyro import precision
from guidebook.engines.pyro.precision import _Gathering, _linear, _reaching, _twice_differentiable, onto

STEPS, ROWS, WIDTH = 5, 3, 4


def _tensors(particles):
    made = torch.Generator().manual_seed(0)

    def tensor(*shape):
        return torch.randn(shape, dtype=torch.float64, generator=made).requires_grad_()

    return {
        "first": tensor(*particles, ROWS, WIDTH),
        "sequence": tensor(STEPS, ROWS, WIDTH),
        "weight": tensor(WIDTH, WIDTH),
        "bias": tensor(WIDTH),
        "other": tensor(WIDTH, WIDTH),
    }


def _loop(tensors, gathering, last):
    """A recurrence that uses one weight twice a step, and another twice in the second and not in the last `last`."""
    h, sequence, weight, bias, other = tensors.values()
    states = []
    with _Gathering(STEPS) if gathering else nullcontext() as loop:
        parts = sequence.unbind(0) if loop is None else loop.parts(sequence)
        for time, part in enumerate(parts):
            h = _linear(_linear(h, weight, bias).tanh(), weight)
            if time < STEPS - last:
                h = onto(h, part, other).sigmoid()
            if time == 1:
                h = onto(h, part, other)
            states.append(h)
    return torch.stack(states)


@pytest.fixture
def formed(monkeypatch):
    """Whether each gathered gradient of a weight was formed, in the order of the backward pass."""
    found, backward = [], precision._Gathered.backward

    def spied(ctx, upstream):
        gradients = backward(ctx, upstream)
        found.append(gradients[1] is not None)
        return gradients

    monkeypatch.setattr(precision._Gathered, "backward", staticmethod(spied))
    return found


@pytest.mark.parametrize("particles", [(), (2,)], ids=["rows", "particles"])
@pytest.mark.parametrize("last", [0, 1], ids=["every step", "not the last"])
def test_gathered_gradients_are_autograds(particles, last, formed):
    tensors = _tensors(particles)
    upstream = torch.randn(STEPS, *particles, ROWS, WIDTH, dtype=torch.float64)
    found, expected = (_loop(tensors, gathering, last) for gathering in (True, False))
    torch.testing.assert_close(found, expected)
    gradients = (torch.autograd.grad(states, list(tensors.values()), upstream) for states in (found, expected))
    torch.testing.assert_close(*gradients)
    again = bool(particles) and not last  # the other weight is used once more than there are steps
    assert formed == [True] * (3 + again), "a weight with its bias, the same without, and another"


def test_a_graph_is_gone_through_twice():
    tensors = _tensors(())
    loss = _loop(tensors, True, 0).square().sum()
    once, again = (torch.autograd.grad(loss, list(tensors.values()), retain_graph=True) for _ in range(2))
    torch.testing.assert_close(once, again)


def test_gradients_of_weights_that_are_not_reached_are_not_formed(formed):
    tensors = _tensors(())
    loss = _loop(tensors, True, 0).sum()
    with _reaching([tensors["weight"]]):
        loss.backward(inputs=[tensors["weight"], tensors["sequence"]])
    assert sorted(formed) == [False, True, True]


def test_what_was_read_must_not_change():
    tensors = _tensors(())
    x = tensors["first"] * 1.0
    with _Gathering(1):
        found = _linear(x, tensors["weight"])
    x.zero_()
    with pytest.raises(RuntimeError, match="changed in place"):
        found.sum().backward()


def test_weights_made_anew_at_every_step_are_autograds():
    tensors, steps = _tensors(()), 2 * _Gathering.most
    h = tensors["first"]
    with _Gathering(steps) as loop:
        for _ in range(steps):
            h = _linear(h[0], tensors["weight"] * 1.0).expand(ROWS, WIDTH) + _linear(h, tensors["weight"] * 1.0).tanh()
    assert len(loop.uses) == _Gathering.most
    again = tensors["first"]
    for _ in range(steps):
        again = (
            torch.nn.functional.linear(again[0], tensors["weight"]).expand(ROWS, WIDTH)
            + (again @ tensors["weight"].t()).tanh()
        )
    gradients = (torch.autograd.grad(value.sum(), tensors["weight"]) for value in (h, again))
    torch.testing.assert_close(*gradients)


def test_second_derivatives():
    tensors = _tensors(())
    with _twice_differentiable():
        assert torch.autograd.gradgradcheck(
            lambda weight: _loop({**tensors, "weight": weight}, True, 0).square().sum(), tensors["weight"]
        )
