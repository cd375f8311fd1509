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


def bound(engine, divergence, scheme, seed):
    """−loss of the stock machinery, per row, of ROWS rows with the same x."""
    torch_side = engine == "pyro"
    ppl, room = (pyro, in_torch) if torch_side else (numpyro, in_jax)
    array = (lambda x: torch.tensor(np.asarray(x))) if torch_side else jnp.asarray

    def rows(x):
        return array(np.broadcast_to(x, (ROWS, *np.shape(x))).copy())

    def model():
        with ppl.plate("data", ROWS):
            total = rows(math.log(TOTAL))
            measure = ppl.sample(
                "F", room.BoundedDirichletPrior(total, array(np.zeros(2)), array(np.ones(2)), _mask(rows))
            )
            weights, atoms = measure[..., :1], measure[..., 1:]
            mean = (weights.exp() if torch_side else jnp.exp(weights)) * atoms
            ppl.sample("x", ppl.distributions.Normal(mean.sum(-2), SPREAD).to_event(1), obs=rows(X))

    def guide():
        with ppl.plate("data", ROWS):
            posterior = room.BoundedDirichletProcess(
                rows(LOG_ALPHA), rows(LOC), rows(SCALE), _mask(rows), scheme=scheme
            )
            ppl.sample("F", posterior)

    loss = divergence.on(engine)
    if torch_side:
        pyro.clear_param_store()
        pyro.set_rng_seed(seed)
        return -loss.loss(model, guide) / ROWS
    return -float(jax.jit(lambda key: loss.loss(key, {}, model, guide))(jax.random.key(seed))) / ROWS


def _mask(rows):
    return rows(np.array([True, True]))


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
