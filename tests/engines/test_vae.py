"""The VAE of vectors: parity of the engines, probabilistic PCA as its linear case, training on both engines."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import multivariate_normal

from guidebook.guides import PAIRS
from guidebook.inference import KL, evaluate, fit
from guidebook.models.vae import VAEModel

VAE = PAIRS["vae"]
D, Z, B = 5, 2, 4
NOISE = 0.6


def networks(likelihood, hidden=(7,)):
    model = VAEModel.model_validate(
        {"prior": {"kind": "standard_normal", "dim": Z}, "decoder": {"hidden": hidden}, "likelihood": likelihood}
    )
    guide = VAE.guide_spec.model_validate(
        {"encoder": {"hidden": (6,)}, "features": 3, "posterior": {"initial_scale": 1.0}}
    )
    return VAE.realisable(model, guide, D)


def rows(both, likelihood):
    x = np.random.default_rng(0).normal(size=(B, D))
    return both.rows({"x": (x > 0).astype(float) if likelihood["kind"] == "bernoulli" else x}, filler=1)


@pytest.mark.usefixtures("_float64")
@pytest.mark.parametrize(
    "likelihood",
    [{"kind": "bernoulli"}, {"kind": "gaussian"}, {"kind": "gaussian", "bounded": True}],
    ids=["bernoulli", "gaussian", "bounded"],
)
@pytest.mark.parametrize("particles", [1, 3])
def test_both_engines_agree(both, likelihood, particles):
    batch, found = rows(both, likelihood), []
    noise = {"z": np.random.default_rng(1).standard_normal((B + 1, Z) if particles == 1 else (particles, B + 1, Z))}
    for engine in both.engines:
        program = both.program(
            engine,
            both.replaying(engine, VAE, noise),
            networks(likelihood),
            data_size=40,
            divergence=KL(particles=particles),
        )
        state = program.init(batch)
        terms = program.terms(state, batch, seed=0, particles=particles)
        found.append((terms.elbo(), *both.gradients(program, state, batch)))
    (elbo, gradients, info), (other_elbo, other_gradients, other_info) = found
    np.testing.assert_allclose(elbo, other_elbo, rtol=1e-8)
    assert info == pytest.approx(other_info, rel=1e-8)
    for name, gradient in gradients.items():
        np.testing.assert_allclose(gradient, other_gradients[name], rtol=1e-6, atol=1e-10, err_msg=name)
        assert np.abs(gradient).max() > 0, name


@pytest.mark.usefixtures("_float64")
def test_a_linear_gaussian_decoder_is_probabilistic_pca(both, engine):
    """IW-NLL with many particles against log N(x; b, W Wᵀ + s² I)."""
    rng, batch = np.random.default_rng(2), rows(both, {"kind": "gaussian"})
    program = both.program(engine, VAE, networks({"kind": "gaussian"}, hidden=()), data_size=B)
    state = program.init(batch)
    loading, offset = rng.normal(size=(D, Z)), rng.normal(size=D)
    weights = program.weights(state) | {
        "decoder.weight_0": np.concatenate([loading, np.zeros((D, Z))]),
        "decoder.bias_0": np.concatenate([offset, np.full(D, 2 * np.log(NOISE))]),
        "posterior.weight": np.zeros((2 * Z, 3)),
    }
    state = program.load_weights(state, weights)
    log_weights = program.log_weights(state, batch, seed=0, particles=40_000, rows=10**6)
    found = np.log(np.exp(log_weights - log_weights.max(0)).mean(0)) + log_weights.max(0)
    share = np.exp(log_weights - log_weights.max(0))
    error = share.std(0) / share.mean(0) / 200
    exact = multivariate_normal(offset, loading @ loading.T + NOISE**2 * np.eye(D)).logpdf(batch["x"])
    assert (np.abs(found - exact) < 4.5 * error + 1e-3)[:B].all()


def test_it_fits_and_is_judged(engine, tmp_path):
    rng = np.random.default_rng(3)
    x = (rng.random((1000, 12)) < np.where(rng.random((1000, 1)) < 0.5, 0.9, 0.1)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=x)
    settings = (
        "model.prior.dim=2",
        "model.decoder.hidden=[16]",
        "guide.encoder.hidden=[16]",
        "guide.features=16",
        "guide.posterior.initial_scale=0.3",
        "fit.epochs=6",
        "fit.optimiser.learning_rate=0.02",
    )
    run = fit(VAE, *settings, engine=engine, data=tmp_path / "x.npz", out=tmp_path / "run", progress=False)
    found = evaluate(run, particles=50)
    entropy = 12 * -(0.9 * np.log(0.9) + 0.1 * np.log(0.1)) + np.log(2)  # of the truth, from above
    assert found.unit == "nats per datum"
    assert found.iw_nll < entropy + 0.8
    assert found.active_units >= 1
    assert found.mi > 0.4
