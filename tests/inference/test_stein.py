"""Stein transport by the libraries' own SVGD, on linear Gaussian runs whose posterior is exact.

z ~ N(0, I),   x ~ N(W z + b, s²):   z | x ~ N(P⁻¹ Wᵀ (x − b) / s², P⁻¹),   P = I + Wᵀ W / s²
"""

from __future__ import annotations

import numpy as np
import pytest

from guidebook.guides import PAIRS
from guidebook.inference import fit, transport
from guidebook.models import BadInput

D, Z, S = 4, 2, 0.7
PARTICLES = 60
SLANTED = np.array([[1.0, 0.95]] * D)  # columns nearly alike: the posterior's correlation is −0.87
RNG = np.random.default_rng(1)
LOADING, OFFSET = RNG.normal(size=(D, Z)), RNG.normal(size=D)
COVARIANCE = np.linalg.inv(np.eye(Z) + LOADING.T @ LOADING / S**2)
SPREAD = np.sqrt(np.diag(COVARIANCE))


def vae(engine, folder, *settings):
    """A run of one step on data of 40 rows."""
    folder.mkdir(exist_ok=True)
    np.savez(folder / "x.npz", x=np.random.default_rng(0).normal(size=(40, D)).astype(np.float32))
    chosen = (
        "model.prior.dim=2",
        "guide.features=4",
        "model.decoder.hidden=[]",
        'model.likelihood={kind="gaussian"}',
        "fit.max_steps=1",
        *settings,
    )
    return fit(PAIRS["vae"], *chosen, engine=engine, data=folder / "x.npz", out=folder / "run", progress=False)


@pytest.fixture
def linear(tmp_path, engine):
    """The run with known weights, and three rows of which the second is a filler."""
    run = vae(engine, tmp_path)
    weights = {
        "decoder.weight_0": np.concatenate([LOADING, np.zeros((D, Z))]),
        "decoder.bias_0": np.concatenate([OFFSET, np.full(D, 2 * np.log(S))]),
    }
    run.__dict__["weights"] = run.weights | {name: value.astype(np.float32) for name, value in weights.items()}
    batch = {name: array[:3].copy() for name, array in run.batches("train").batch(0).items()}
    batch["weight"][1] = 0.0
    return run, batch


def moments(found, batch):
    """By row: the mean's distance from the exact one in its standard deviations; the covariance in the exact scale."""
    means = (batch["x"][[0, 2]] - OFFSET) @ LOADING @ COVARIANCE / S**2
    apart = (found.mean(0) - means) / SPREAD
    return apart, np.stack([np.cov(row.T, bias=True) for row in found.swapaxes(0, 1)]) / np.outer(SPREAD, SPREAD)


def test_under_a_wide_kernel_the_particles_have_the_moments_of_the_exact_posterior(linear):
    """A kernel that is quadratic over the particles matches both moments of a Gaussian (Liu & Wang 2018)."""
    run, batch = linear
    found = transport(run, batch, particles=PARTICLES, steps=300, bandwidth=40.0)["z"]
    assert found.shape == (PARTICLES, 2, Z)
    apart, covariance = moments(found, batch)
    exact = COVARIANCE / np.outer(SPREAD, SPREAD)
    assert np.abs(apart).max() < 0.03
    np.testing.assert_allclose(covariance, np.broadcast_to(exact, covariance.shape), atol=0.06)


def test_under_the_median_heuristic_few_particles_spread_too_little(linear):
    run, batch = linear
    apart, covariance = moments(transport(run, batch, particles=PARTICLES, steps=300)["z"], batch)
    assert np.abs(apart).max() < 0.03
    spread = np.diagonal(covariance, axis1=1, axis2=2)
    assert (spread > 0.6).all()
    assert (spread < 1.0).all()


def test_a_mixture_of_normals_has_the_moments_of_the_exact_posterior(linear):
    """Two diagonal normals would be too narrow along a correlation; five lie along it."""
    run, batch = linear
    if run.recipe.engine == "pyro":
        with pytest.raises(BadInput, match=r'run.on\("numpyro"\) would be right'):
            transport(run, batch, components="normal")
        return
    slanted = {"decoder.weight_0": np.concatenate([SLANTED, np.zeros((D, Z))]).astype(np.float32)}
    run.__dict__["weights"] = run.weights | slanted
    exact = np.linalg.inv(np.eye(Z) + SLANTED.T @ SLANTED / S**2)
    chosen = {"components": "normal", "particles": 8, "steps": 800, "learning_rate": 0.02, "draws": 2000}
    found = transport(run, batch, **chosen)["z"]
    assert found.shape == (8 * 2000, 2, Z)
    for row, x in enumerate(batch["x"][[0, 2]]):
        mean = (x - OFFSET) @ SLANTED @ exact / S**2
        spread = np.sqrt(np.diag(exact))
        assert np.abs((found[:, row].mean(0) - mean) / spread).max() < 0.1
        covariance = np.cov(found[:, row].T)
        np.testing.assert_allclose(covariance / np.outer(spread, spread), exact / np.outer(spread, spread), atol=0.25)
        slope, straight = covariance[0, 1] / covariance[0, 0], exact[0, 1] / exact[0, 0]
        assert slope == pytest.approx(straight, abs=0.25 * abs(straight))


def test_the_latent_of_a_sentence(tiny, engine, tmp_path):
    run = fit(tiny, "fit.max_steps=1", engine=engine, out=tmp_path / "run", progress=False)
    before = run.program.weights(run.state)
    batch = {name: array[:1] for name, array in run.batches("test").batch(0).items()}
    found = transport(run, batch, particles=4, steps=3)
    assert found["z"].shape == (4, 1, run.recipe.model.prior.dim)
    assert np.isfinite(found["z"]).all()
    for name, value in run.program.weights(run.state).items():
        np.testing.assert_array_equal(value, before[name])


def test_what_cannot_be_transported_is_refused(linear, engine, tmp_path):
    run, batch = linear
    with pytest.raises(BadInput, match="two at least"):
        transport(run, batch, particles=1)
    discrete = vae(
        engine,
        tmp_path / "discrete",
        "model.prior.kind=bernoulli",
        "guide.posterior.kind=bernoulli",
        'divergence={kind="reweighted_wake_sleep", particles=2}',
    )
    with pytest.raises(BadInput, match="'z' is discrete"):
        transport(discrete, batch)
