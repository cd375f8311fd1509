"""KLs of normals whose components may be missing, and which components a mixture draws, on both engines."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from guidebook.engines.numpyro import mixture_draw as drawn_in_jax
from guidebook.engines.numpyro import normal_kl as in_jax
from guidebook.engines.pyro import mixture_draw as drawn_in_torch
from guidebook.engines.pyro import normal_kl as in_torch

MASK = np.array([[True, True, False], [True, True, True]])


def parameters():
    """μ, σ (2, 3, 4) and m, s (2, 1, 4)."""
    rng = np.random.default_rng(0)
    of, by = (2, 3, 4), (2, 1, 4)
    return rng.normal(size=of), rng.uniform(0.3, 2, of), rng.normal(size=by), rng.uniform(0.5, 2, by)


def closed_form():
    """The KL, and its gradients in all four."""
    loc, scale, m, s = parameters()
    each = np.log(s / scale) + (scale**2 + (loc - m) ** 2) / (2 * s**2) - 0.5
    there = MASK[..., None]
    slopes = (loc - m) / s**2, scale / s**2 - 1 / scale
    of_prior = -slopes[0], 1 / s - (scale**2 + (loc - m) ** 2) / s**3
    gradients = [np.where(there, x, 0) for x in (*slopes, *of_prior)]
    gradients[2:] = (x.sum(1, keepdims=True) for x in gradients[2:])
    return np.where(MASK, each.sum(-1), 0), gradients


@pytest.mark.parametrize("missing", [0.7, np.nan])
def test_the_closed_form_and_its_gradients_on_torch(missing):
    kl, gradients = closed_form()
    arrays = list(parameters())
    arrays[0][~MASK] = arrays[1][~MASK] = missing
    inputs = [torch.tensor(x, requires_grad=True) for x in arrays]
    found = in_torch.normal_kl(*inputs, torch.tensor(MASK))
    np.testing.assert_allclose(found.detach(), kl, rtol=1e-12)
    for one, true in zip(torch.autograd.grad(found.sum(), inputs), gradients, strict=True):
        np.testing.assert_allclose(one, true, rtol=1e-12)


def test_it_has_second_derivatives_on_torch():
    inputs = [torch.tensor(x, requires_grad=True) for x in parameters()]
    assert torch.autograd.gradgradcheck(lambda *x: in_torch.normal_kl(*x, torch.tensor(MASK)), inputs)


@pytest.mark.parametrize("missing", [0.7, np.nan])
def test_the_closed_form_and_its_gradients_on_jax(missing):
    kl, gradients = closed_form()
    arrays = list(parameters())
    arrays[0][~MASK] = arrays[1][~MASK] = missing
    with jax.enable_x64(True):
        inputs = [jnp.asarray(x) for x in arrays]
        np.testing.assert_allclose(in_jax.normal_kl(*inputs, jnp.asarray(MASK)), kl, rtol=1e-12)
        found = jax.grad(lambda *x: in_jax.normal_kl(*x, jnp.asarray(MASK)).sum(), argnums=(0, 1, 2, 3))(*inputs)
    for one, true in zip(found, gradients, strict=True):
        np.testing.assert_allclose(one, true, rtol=1e-12)


@pytest.mark.parametrize("engine", ["torch", "jax"])
def test_components_come_in_their_shares(engine):
    shares = np.array([[0.0, 0.25, 0.0, 0.7, 0.05, 0.0], [1.0, 0.0, 0.0, 0.0, 0.0, 0.0]])
    count, logs = 40_000, np.log(np.maximum(shares, 1e-38)).astype(np.float32)
    logs[shares == 0] = -1e30
    if engine == "torch":
        torch.manual_seed(0)
        found = drawn_in_torch.components_drawn(torch.tensor(logs), torch.Size((2, count))).numpy()
    else:
        found = np.asarray(drawn_in_jax.components_drawn(jax.random.key(0), jnp.asarray(logs), (2, count)))
    seen = np.stack([np.bincount(row, minlength=6) / count for row in found])
    assert (np.abs(seen - shares) <= 5 * (shares * (1 - shares) / count) ** 0.5).all()
