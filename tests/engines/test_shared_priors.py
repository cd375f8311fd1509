"""Priors that read more than their own weights: VampPrior through the guide's networks, p(z | c) through a condition."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from guidebook.guides import PAIRS
from guidebook.inference import KL
from guidebook.models.priors import ConditionalNormal

pytestmark = pytest.mark.usefixtures("_float64")
D, Z, K = 4, 2, 3
VAE = PAIRS["vae"]


@pytest.fixture
def begun(both, engine):
    """A VAE of vectors with a VampPrior, and a batch whose rows are its pseudo-inputs."""
    model = VAE.model_spec.model_validate(
        {"prior": {"kind": "vamp", "dim": Z, "components": K, "initial_scale": 1.0}, "decoder": {"hidden": (3,)}}
        | {"likelihood": {"kind": "gaussian"}}
    )
    guide = VAE.guide_spec.model_validate({"encoder": {"hidden": ()}, "features": 3, "posterior": {"initial_scale": 1}})
    networks = VAE.realisable(model, guide, D)
    batch = both.rows({"x": networks["prior"].initial_weights("prior", 0)["inputs"]})
    program = both.program(engine, VAE, networks, data_size=K, divergence=KL())
    return program, program.init(batch), batch


def test_the_vamp_prior_is_the_mixture_of_the_posteriors(begun):
    program, state, batch = begun
    q = program.posterior(state, batch)["z"]
    draws = program.draws(state, batch, seed=1, particles=2)["z"]
    parts = stats.norm(q.loc, q.scale).logpdf(draws[:, :, None]).sum(-1)
    terms = program.terms(state, batch, seed=1, particles=2)
    np.testing.assert_allclose(terms.log_prior["z"], np.log(np.exp(parts).mean(-1)), rtol=1e-8)
    assert terms.sampled == ("z",)


def test_its_pseudo_inputs_and_the_encoder_learn_and_keep_their_sides(both, begun):
    program, state, batch = begun
    assert program.sides(state)["prior.inputs"] == "model"
    assert program.sides(state)["encoder.weight_0"] == "guide"
    moved, _ = both.gradients(program, state, batch)
    assert all(np.abs(moved[name]).max() > 0 for name in ("prior.inputs", "encoder.weight_0", "posterior.weight"))


def test_a_conditional_prior_is_the_normal_its_network_says(both):
    spec = ConditionalNormal(dim=Z, hidden=(5,))
    weights = {
        name: np.random.default_rng(1).normal(size=weight.shape) for name, weight in spec.layout(condition=3).items()
    }
    c = np.random.default_rng(2).normal(size=(6, 3))
    hidden = np.tanh(c @ weights["weight_0"].T + weights["bias_0"])
    loc, log_variance = np.split(hidden @ weights["weight_1"].T + weights["bias_1"], 2, -1)
    z = np.random.default_rng(3).normal(size=(6, Z))
    for engine in both.engines:
        law = both.Law(engine, both.realised(engine, spec, weights, condition=3), c)
        np.testing.assert_allclose(law.log_prob(z), stats.norm(loc, np.exp(log_variance / 2)).logpdf(z).sum(-1))
