"""Decoder weights as latents (Kingma & Welling 2014, appendix F): Bayesian linear regression is exact, the VAE agrees.

w ~ N(0, s²);   y_n ~ N(X_n w, r²),  X orthogonal:  the posterior factorises, so the mean field holds it
"""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import multivariate_normal

from guidebook.engines import ENGINES
from guidebook.guides import PAIRS, Pair
from guidebook.inference import IWAE, KL, evaluate, fit
from guidebook.inference.evaluate import evaluate_program
from guidebook.models import MLP, BadInput, Network
from guidebook.models.latent_weights import WeightPosterior, WeightPrior, latent
from guidebook.models.vae import VAEModel

D, N, SCALE, NOISE = 2, 8, 1.5, 0.7
RNG = np.random.default_rng(0)
DESIGN = np.linalg.qr(np.concatenate([np.ones((N, 1)), RNG.normal(size=(N, D))], 1))[
    0
]  # the bias is a column of its own
DESIGN = DESIGN / DESIGN[0, 0] * [1.0, 0.8, 2.0]
Y = DESIGN @ [0.5, -1.0, 2.0] + NOISE * RNG.normal(size=N)
SPREAD = ((DESIGN**2).sum(0) / NOISE**2 + SCALE**-2) ** -0.5
MEAN = SPREAD**2 * (DESIGN.T @ Y) / NOISE**2
EVIDENCE = multivariate_normal(np.zeros(N), SCALE**2 * DESIGN @ DESIGN.T + NOISE**2 * np.eye(N)).logpdf(Y)


def regression(ppl, batch, nets):
    decoder = ppl.module("decoder", nets["decoder"])
    laws = ppl.module("decoder_prior", nets["decoder_prior"])()
    weights = {name: ppl.sample(f"decoder.{name}", law) for name, law in laws.items()}
    with ppl.plate("data", batch.data_size, subsample=batch.index), ppl.mask(batch.real):
        ppl.sample("y", ppl.dist.Normal(decoder(batch.x, weights), NOISE).to_event(1), obs=batch.y)


def regression_guide(ppl, batch, nets):
    for name, law in ppl.module("decoder_posterior", nets["decoder_posterior"])().items():
        ppl.sample(f"decoder.{name}", law)


LINEAR, SIZES = latent(MLP(hidden=())), {"inputs": D, "outputs": 1}
REGRESSION = Pair(
    regression,
    regression_guide,
    networks={
        "decoder": Network(LINEAR, SIZES),
        "decoder_prior": Network(WeightPrior(network=LINEAR, scale=SCALE), SIZES),
        "decoder_posterior": Network(WeightPosterior(network=LINEAR, initial_scale=0.3), SIZES),
    },
)


def posterior(loc, spread):
    """The guide's weights for a q of these moments; the bias comes first."""
    log_scale = np.log(np.asarray(spread) / 0.3)
    return {
        f"decoder_posterior.{name}_{part}": value
        for part, every in (("loc", np.asarray(loc)), ("log_scale", log_scale))
        for name, value in (("bias_0", every[:1]), ("weight_0", every[None, 1:]))
    }


def batch_of(both, rows=slice(None), filler=0):
    return both.rows({"x": DESIGN[rows, 1:], "y": Y[rows, None]}, filler)


@pytest.mark.usefixtures("_float64")
def test_at_the_exact_posterior_every_draw_is_the_evidence(both, engine):
    """Estimator A has no variance there; a global site counts once, whichever way the data are cut."""
    assert abs(DESIGN[:, 0] - 1).max() < 1e-12
    program = both.program(engine, REGRESSION, data_size=N)
    whole = batch_of(both)
    state = program.init(whole)
    assert program.shared == ("decoder.weight_0", "decoder.bias_0")
    state = program.load_weights(state, posterior(MEAN, SPREAD))
    found = program.terms(state, whole, seed=0, particles=3)
    np.testing.assert_allclose(found.log_weight().sum(1), EVIDENCE, rtol=1e-10)
    parts = [program.terms(state, batch_of(both, rows, filler=1), seed=0) for rows in (slice(0, 3), slice(3, N))]
    pieces = sum((part.log_weight() * part.weight).sum() for part in parts)
    np.testing.assert_allclose(pieces, EVIDENCE, rtol=1e-10)
    gap = 0.5 * ((0.2 / SPREAD) ** 2 + 1.3**2 - 1 - 2 * np.log(1.3)).sum()
    state = program.load_weights(state, posterior(MEAN + 0.2, 1.3 * SPREAD))
    other = program.terms(state, whole, seed=0, particles=4000)
    draws = other.log_weight().sum(1)
    assert abs(EVIDENCE - gap - draws.mean()) < 4.5 * draws.std() / 4000**0.5
    with pytest.raises(BadInput, match="is one draw for all data"):
        program.log_weights(state, whole, seed=0, particles=2, rows=10)


@pytest.mark.usefixtures("_float64")
def test_training_finds_posterior_and_evidence(both, engine):
    program = both.program(engine, REGRESSION, data_size=N, divergence=KL(estimator="stl", particles=4))
    batch = batch_of(both)
    state = program.init(batch)
    for step in range(150):
        state, _ = program.step(state, [batch], both.control(step, rate=0.15))
    weights = program.weights(state)
    loc = np.concatenate([weights["decoder_posterior.bias_0_loc"], weights["decoder_posterior.weight_0_loc"][0]])
    np.testing.assert_allclose(loc, MEAN, atol=1e-3)
    found = program.terms(state, batch, seed=0, particles=5)
    np.testing.assert_allclose(found.log_weight().sum(1), EVIDENCE, atol=1e-2)


def networks():
    model = VAEModel.model_validate({"prior": {"dim": 2}, "decoder": {"hidden": (4,)}, "decoder_prior_scale": 0.8})
    guide = PAIRS["vae"].guide_spec.model_validate(
        {"encoder": {"hidden": (3,)}, "features": 3, "posterior": {"initial_scale": 1.0}}
    )
    return PAIRS["vae"].realisable(model, guide, 5)


@pytest.mark.usefixtures("_float64")
@pytest.mark.parametrize("particles", [1, 3])
def test_both_engines_agree(both, particles):
    x = (np.random.default_rng(0).random((4, 5)) < 0.5).astype(float)
    batch, found = both.rows({"x": x}, filler=1), []
    shapes = {
        "z": (5, 2),
        "decoder.weight_0": (4, 2),
        "decoder.bias_0": (4,),
        "decoder.weight_1": (5, 4),
        "decoder.bias_1": (5,),
    }
    rng, noise = np.random.default_rng(1), {}
    for site, shape in shapes.items():
        outer = () if particles == 1 else (particles,) if site == "z" else (particles, 1)
        noise[site] = rng.standard_normal((*outer, *shape))
    for engine in both.engines:
        pair = both.replaying(engine, PAIRS["vae"], noise)
        program = both.program(engine, pair, networks(), data_size=40, divergence=KL(particles=particles))
        state = program.init(batch)
        terms = program.terms(state, batch, seed=0, particles=particles)
        assert terms.kl["decoder.weight_1"].shape[-1] == 1
        found.append((terms.elbo(), *both.gradients(program, state, batch)))
    (elbo, gradients, info), (other_elbo, other_gradients, other_info) = found
    np.testing.assert_allclose(elbo, other_elbo, rtol=1e-8)
    assert info == pytest.approx(other_info, rel=1e-8)
    for name, gradient in gradients.items():
        np.testing.assert_allclose(gradient, other_gradients[name], rtol=1e-6, atol=1e-10, err_msg=name)
        assert np.abs(gradient).max() > 0, name


@pytest.mark.usefixtures("_float64")
def test_what_weights_of_single_data_cannot_say_is_said(both, engine):
    x = (np.random.default_rng(0).random((4, 5)) < 0.5).astype(float)
    batch = both.rows({"x": x})
    program = both.program(engine, PAIRS["vae"], networks(), data_size=4)
    state = program.init(batch)
    found = evaluate_program(program, state, [batch], particles=3, rows=100, seed=0, text=False)
    assert found.iw_nll is None
    assert "is one draw for all data" in found.notes["iw_nll"]
    assert "is one draw for all data" in repr(found)
    assert found.active_units is not None
    assert found.mi is not None
    assert np.isfinite(found.elbo)
    assert program.prior_draws(state, seed=0, rows=3).shape == (3, 2)
    with pytest.raises(BadInput, match="one draw for all data"):
        both.program(engine, PAIRS["vae"], networks(), data_size=4, divergence=IWAE()).init(batch)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_recipe_fits_it(engine, tmp_path):
    rng = np.random.default_rng(3)
    x = (rng.random((300, 8)) < np.where(rng.random((300, 1)) < 0.5, 0.9, 0.1)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=x)
    settings = (
        "model.prior.dim=2",
        "model.decoder.hidden=[4]",
        "model.decoder_prior_scale=1.0",
        "guide.features=4",
        "fit.epochs=15",
        "fit.optimiser.learning_rate=0.03",
    )
    run = fit(PAIRS["vae"], *settings, engine=engine, data=tmp_path / "x.npz", out=tmp_path / "run", progress=False)
    assert run.losses[-1] < run.losses[0] - 0.3
    assert "decoder.weight_0" not in run.weights
    found = evaluate(run, particles=2)
    assert found.sites["decoder.weight_1"].kl_from == "analytic"
