"""Objectives whose sides minimise different things, as `loss=` of the stock SVIs: each gradient reaches its own side."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pyro
import pytest
import torch
from numpyro.infer import SVI

from guidebook.inference import FIVO, IWAE, KL, SVGD, Fisher, InfoVAE, ReweightedWakeSleep, Stein
from guidebook.models import BadInput

X = np.array([0.3, -1.2, 2.0])
NOISE = 0.8
GAIN, SPREAD = 1 / (1 + NOISE**2), (1 + NOISE**-2) ** -0.5  # of the posterior of z under z ~ N(0, 1), x ~ N(z, NOISE²)


def programs(ppl, array, mask_shift):
    """The conjugate model with a shift θ of x, and its exact posterior as the guide, moved by `mask_shift`."""

    def model(x):
        shift = ppl.param("shift", array(0.0))
        with ppl.plate("data", len(X)):
            z = ppl.sample("z", ppl.distributions.Normal(array(0.0), 1.0))
            ppl.sample("x", ppl.distributions.Normal(z + shift, NOISE), obs=x)

    def guide(x):
        gain = ppl.param("gain", array(GAIN + mask_shift))
        with ppl.plate("data", len(X)):
            ppl.sample("z", ppl.distributions.Normal(gain * x, SPREAD))

    return model, guide


def gradients(engine, divergence, moved=0.0):
    if engine == "pyro":
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        loss = divergence.on("pyro")
        model, guide = programs(pyro, lambda value: torch.tensor(value, dtype=torch.float64), moved)
        loss.loss_and_grads(model, guide, torch.tensor(X))
        found = {name: float(value.grad) for name, value in pyro.get_param_store().named_parameters()}
        pyro.clear_param_store()
        return found
    with jax.enable_x64(True):
        model, guide = programs(numpyro, jnp.asarray, moved)
        svi = SVI(model, guide, numpyro.optim.SGD(1.0), divergence.on("numpyro"))
        state = svi.init(jax.random.key(0), jnp.asarray(X))
        before = svi.get_params(state)
        after = svi.get_params(svi.update(state, jnp.asarray(X))[0])
        return {name: float(before[name] - after[name]) for name in before}


def evidence_slope():
    """−∂/∂θ Σ log N(x; θ, 1 + NOISE²) at θ = 0."""
    return -X.sum() / (1 + NOISE**2)


def test_at_the_posterior_sticking_the_landing_leaves_the_guide_alone_and_fits_the_model(engine):
    found = gradients(engine, KL(estimator="stl", particles=64))
    assert abs(found["gain"]) < 1e-10
    sampled = gradients(engine, KL(estimator="sampled", particles=64))
    assert found["shift"] == pytest.approx(sampled["shift"], rel=1e-9)
    assert abs(sampled["gain"]) > 1e-3
    assert found["shift"] == pytest.approx(evidence_slope(), abs=4.5 * SPREAD / NOISE**2 * 3**0.5 / 8)


@pytest.mark.parametrize(
    "divergence", [IWAE(particles=64, estimator="dreg"), ReweightedWakeSleep(particles=64), SVGD(particles=64)]
)
def test_both_sides_go_down_their_own_slope(engine, divergence):
    found = gradients(engine, divergence, moved=0.3)
    assert found["shift"] == pytest.approx(evidence_slope(), abs=0.6)
    assert found["gain"] > 0.05  # towards the posterior


@pytest.mark.parametrize("divergence", [InfoVAE(), Stein(particles=3), InfoVAE(distance="stein", particles=3)])
def test_an_aggregate_objective_runs_under_the_stock_svis(engine, divergence):
    assert all(np.isfinite(value) for value in gradients(engine, divergence).values())


def test_the_fisher_divergence_under_the_stock_svis_has_its_formulas_slope(engine):
    """∂ F / ∂ gain = Σ 2 gain x², and that of the reconstruction by the mean of q."""
    found, gain = gradients(engine, Fisher(particles=64), moved=0.3)["gain"], GAIN + 0.3
    exact = 2 * gain * (X**2).sum() - ((1 - gain) * X**2).sum() / NOISE**2
    assert abs(found - exact) < 4.5 * SPREAD / NOISE**2 * np.sqrt((X**2).sum()) / 8


def test_a_single_loss_is_refused_where_there_are_two():
    model, guide = programs(pyro, lambda value: torch.tensor(value, dtype=torch.float64), 0.0)
    with pytest.raises(Exception, match="minimise different things"):
        KL(estimator="stl").on("pyro").differentiable_loss(model, guide, torch.tensor(X))
    pyro.clear_param_store()


def test_a_filter_is_refused(engine):
    with pytest.raises(BadInput, match="use fit"):
        FIVO().on(engine)


@pytest.mark.parametrize("engine", ["pyro", "numpyro"])
def test_a_chain_of_latents_is_parted_into_path_and_score(engine):
    """q(z) q(y | z) with y ~ N(z, 1): at the posterior STL has no gradient, and the score alone has that of a shift."""
    pyro_side = engine == "pyro"
    ppl, array = (pyro, lambda v: torch.tensor(v, dtype=torch.float64)) if pyro_side else (numpyro, jnp.asarray)

    def model(x):
        with ppl.plate("data", len(X)):
            z = ppl.sample("z", ppl.distributions.Normal(array(0.0), 1.0))
            y = ppl.sample("y", ppl.distributions.Normal(z, 1.0))
            ppl.sample("x", ppl.distributions.Normal(y, NOISE), obs=x)

    # precision of (z, y): [[2, -1], [-1, 1 + NOISE^-2]]; of z alone after y: 2 - 1 / (1 + NOISE^-2)
    of_y = 1 + NOISE**-2
    of_z = 2 - 1 / of_y

    def guide(x):
        shift = ppl.param("shift", array(0.0))
        with ppl.plate("data", len(X)):
            mean = x * NOISE**-2 / of_y / of_z
            z = ppl.sample("z", ppl.distributions.Normal(mean + shift, array(of_z**-0.5)))
            ppl.sample("y", ppl.distributions.Normal((z + x * NOISE**-2) / of_y, array(of_y**-0.5)))

    loss = KL(estimator="stl").on(engine)
    if pyro_side:
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        loss.loss_and_grads(model, guide, torch.tensor(X))
        found = float(dict(pyro.get_param_store().named_parameters())["shift"].grad)
        pyro.clear_param_store()
    else:
        with jax.enable_x64(True):
            svi = SVI(model, guide, numpyro.optim.SGD(1.0), loss)
            state = svi.init(jax.random.key(0), jnp.asarray(X))
            found = -float(svi.get_params(svi.update(state, jnp.asarray(X))[0])["shift"])
    assert found == pytest.approx(0.0, abs=1e-9)
