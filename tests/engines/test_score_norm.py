"""‖∂ log q(z) / ∂(loc, log scale)‖² of the families that the "optimal" baseline knows, against automatic derivatives."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions
import pyro.distributions
import pytest
import torch

S, B, D = 4, 3, 2
RNG = np.random.default_rng(0)
LOC, LOG_SCALE = RNG.normal(size=(2, B, D))
DRAWS = 3 * RNG.normal(size=(S, B, D))


def by_autograd(engine, family):
    """(S, B): a derivative for every draw of every row."""
    if engine == "pyro":

        def log_prob(parameters, z):
            return getattr(pyro.distributions, family)(parameters[0], parameters[1].exp()).log_prob(z).sum()

        slopes = [
            torch.autograd.functional.jacobian(
                lambda parameters, z=z: log_prob(parameters, torch.tensor(z)), torch.tensor(np.stack([LOC, LOG_SCALE]))
            )
            for z in DRAWS
        ]
        return np.stack([(slope**2).sum((0, -1)).numpy() for slope in slopes])

    def log_prob(parameters, z):
        return getattr(numpyro.distributions, family)(parameters[0], jnp.exp(parameters[1])).log_prob(z).sum()

    slopes = jax.vmap(jax.grad(log_prob), (None, 0))(jnp.stack([LOC, LOG_SCALE]), DRAWS)
    return np.asarray((slopes**2).sum((1, -1)))


@pytest.mark.usefixtures("_float64")
@pytest.mark.parametrize("family", ["Normal", "Laplace", "Logistic"])
def test_the_norm_is_that_of_the_derivatives(both, engine, family):
    room, array = {"pyro": (pyro, torch.tensor), "numpyro": (numpyro, jnp.asarray)}[engine]
    fn = getattr(room.distributions, family)(array(LOC), array(np.exp(LOG_SCALE))).to_event(1)
    q = {"fn": fn, "value": array(DRAWS)}
    key = () if engine == "pyro" else (jax.random.key(0),)
    found = both.engine_module(engine, "needed").needed(q, q, {"score_norm"}, {"data"}, *key)["score_norm"]
    np.testing.assert_allclose(both.numpy_of(found), by_autograd(engine, family), rtol=1e-10)


@pytest.mark.usefixtures("_float64")
def test_another_family_has_none(both, engine):
    room, array = {"pyro": (pyro, torch.tensor), "numpyro": (numpyro, jnp.asarray)}[engine]
    q = {"fn": room.distributions.Gamma(array(np.ones(B)), 1.0), "value": array(np.ones(B))}
    key = () if engine == "pyro" else (jax.random.key(0),)
    assert both.engine_module(engine, "needed").needed(q, q, {"score_norm"}, {"data"}, *key) == {}
