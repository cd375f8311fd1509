"""Bounds on log p(x) with a random measure for a latent, against quadrature.

    F = Σ_k π_k δ(z_k),  π ~ Dir(B / 2, B / 2),  z_k ~ N(0, I_2)          x | F ~ N(Σ_k π_k z_k, s² I_2)

Given π the sum is normal, so that p(x) is an integral over one weight.
"""

from __future__ import annotations

import math
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pyro
import pytest
import torch
from scipy import integrate, special

from guidebook.engines.numpyro import dirichlet_process as in_jax
from guidebook.engines.pyro import dirichlet_process as in_torch
from guidebook.inference import IWAE, KL

X, SPREAD, TOTAL = np.array([1.1, -0.6]), 0.5, 1.5
LOG_ALPHA = np.log([1.0, 2.0])
LOC = np.array([[0.0, 0.0], [0.9, -0.5]])
SCALE = np.array([[1.0, 1.0], [0.6, 0.7]])
ROWS, SEEDS = 500, 12


def exact():
    """log p(x)."""

    def density(weight):
        variance = weight**2 + (1 - weight) ** 2 + SPREAD**2
        return math.exp(-X @ X / (2 * variance)) / (2 * math.pi * variance)

    a = TOTAL / 2
    value, _ = integrate.quad(density, 0, 1, weight="alg", wvar=(a - 1, a - 1))
    return math.log(value / special.beta(a, a))


def programs(engine, scheme, gradient="implicit"):
    """The model and the guide, of ROWS rows with the same x; the pseudo-counts are a parameter of each row."""
    torch_side = engine == "pyro"
    ppl, room = (pyro, in_torch) if torch_side else (numpyro, in_jax)
    array = (lambda x: torch.tensor(np.asarray(x))) if torch_side else jnp.asarray

    def rows(x):
        return array(np.broadcast_to(x, (ROWS, *np.shape(x))).copy())

    mask, real = rows(np.array([True, True])), rows(np.array(True))
    masked = pyro.poutine.mask if torch_side else numpyro.handlers.mask

    def model():
        with ppl.plate("data", ROWS), masked(mask=real):
            total = rows(math.log(TOTAL))
            measure = ppl.sample("F", room.BoundedDirichletPrior(total, array(np.zeros(2)), array(np.ones(2)), mask))
            weights, atoms = measure[..., :1], measure[..., 1:]
            mean = (weights.exp() if torch_side else jnp.exp(weights)) * atoms
            ppl.sample("x", ppl.distributions.Normal(mean.sum(-2), SPREAD).to_event(1), obs=rows(X))

    def guide():
        log_alpha = ppl.param("log_alpha", rows(LOG_ALPHA))
        with ppl.plate("data", ROWS), masked(mask=real):
            keep = {"scheme": scheme, "gradient": gradient}
            ppl.sample("F", room.BoundedDirichletProcess(log_alpha, rows(LOC), rows(SCALE), mask, **keep))

    return model, guide


def bound(engine, divergence, scheme, seed):
    """−loss of the stock machinery, per row."""
    loss, both = divergence.on(engine), programs(engine, scheme)
    if engine == "pyro":
        pyro.clear_param_store()
        pyro.set_rng_seed(seed)
        return -loss.loss(*both) / ROWS
    return -float(jax.jit(lambda key: loss.loss(key, {}, *both))(jax.random.key(seed))) / ROWS


def gradients(engine, divergence, seed):
    """Of the loss in the log pseudo-counts of each row, of a mixture whose choices are scored: (ROWS, 2)."""
    loss, both = divergence.on(engine), programs(engine, "mixture", "score")
    if engine == "pyro":
        pyro.clear_param_store()
        pyro.set_rng_seed(seed)
        loss.loss_and_grads(*both)
        found = pyro.param("log_alpha").grad
        assert found is not None
        return found.numpy()
    at = {"log_alpha": jnp.broadcast_to(jnp.asarray(LOG_ALPHA), (ROWS, 2))}
    return np.asarray(jax.grad(lambda at: loss.loss(jax.random.key(seed), at, *both))(at)["log_alpha"])


def mixture_loss(log_alpha):
    """−E log p(x | F) + L_D + L_G in closed form, for two atoms: E Σ_k π_k² = (A / 2 + 1) / (A + 1)."""
    alpha = np.exp(log_alpha)
    total, share = alpha.sum(), alpha / alpha.sum()
    squares, mean, second = (total / 2 + 1) / (total + 1), share @ LOC, share @ (LOC**2 + SCALE**2)
    apart = (X**2 - 2 * X * mean + squares * second + (1 - squares) * mean**2).sum() / (2 * SPREAD**2)
    a, b = total / 2, TOTAL / 2
    weights = special.gammaln(total) - special.gammaln(TOTAL) - 2 * (special.gammaln(a) - special.gammaln(b))
    weights += 2 * (a - b) * (special.digamma(a) - special.digamma(total))
    locations = 2 * share @ (0.5 * (LOC**2 + SCALE**2 - 1) - np.log(SCALE)).sum(-1)
    return apart + weights + locations


@pytest.mark.usefixtures("_float64")
@pytest.mark.parametrize("particles", [1, 2], ids=["alone", "beside another"])
def test_scored_choices_have_the_gradient_of_the_bound(engine, particles):
    steps = 1e-5 * np.eye(2)
    wanted = [(mixture_loss(LOG_ALPHA + step) - mixture_loss(LOG_ALPHA - step)) / 2e-5 for step in steps]
    found = np.concatenate([gradients(engine, KL(particles=particles), seed) for seed in range(SEEDS)])
    error = found.std(0) / len(found) ** 0.5
    assert (np.abs(found.mean(0) - wanted) < 4.5 * error).all(), (found.mean(0), wanted, error)
    assert (error < 0.15 * np.abs(wanted)).all()


@pytest.mark.usefixtures("_float64")
@pytest.mark.parametrize("scheme", ["stratified", "mixture"])
def test_the_bounds_are_in_order(engine, scheme):
    """ELBO ≤ IWAE, rising with particles, ≤ log p(x); the mixture's ELBO by L_D + L_G, an upper bound of its KL."""
    divergences = {
        "elbo": KL(),
        "sampled": KL(estimator="sampled"),
        "iwae_4": IWAE(particles=4),
        "iwae_32": IWAE(particles=32),
    }
    found = {
        name: np.array([bound(engine, divergence, scheme, seed) for seed in range(SEEDS)])
        for name, divergence in divergences.items()
    }
    mean = {name: values.mean() for name, values in found.items()}
    error = {name: values.std(ddof=1) / SEEDS**0.5 for name, values in found.items()}
    order = ["elbo", "sampled", "iwae_4", "iwae_32"]
    for lower, upper in pairwise(order):
        assert mean[lower] < mean[upper] + 4 * math.hypot(error[lower], error[upper]), (lower, upper)
    assert mean["iwae_32"] < exact() + 4 * error["iwae_32"]
    assert mean["iwae_32"] > exact() - math.log(2)  # the posterior holds both orders of the atoms, the guide one
    assert mean["iwae_32"] - mean["sampled"] > 4 * error["sampled"]
    if scheme == "stratified":  # whose KL is exact
        assert mean["elbo"] == pytest.approx(mean["sampled"], abs=4 * math.hypot(error["elbo"], error["sampled"]))
