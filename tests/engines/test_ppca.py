"""Probabilistic PCA as a VAE, x = W z + b + s ε, whose evidence and posterior are known: bounds, gaps, variances.

p(x) = N(b, W Wᵀ + s² I),   p(z | x) = N(M⁻¹ Wᵀ (x − b), s² M⁻¹),   M = Wᵀ W + s² I
"""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import multivariate_normal

from guidebook.guides import PAIRS
from guidebook.inference import CUBO, IWAE, KL
from guidebook.models.vae import VAEModel

pytestmark = pytest.mark.usefixtures("_float64")
VAE = PAIRS["vae"]
D, Z, B, S = 5, 2, 4, 0.6
DRAWS = 20_000
LARGE = 4.5  # standard errors: about one false alarm in 150,000 comparisons
RNG = np.random.default_rng(0)
AXES = np.linalg.qr(RNG.normal(size=(D, Z)))[0]
STRETCHED = AXES * [1.5, 0.8]
"""A loading with orthogonal columns: the posterior is a diagonal normal."""
ANGLE = 0.7
ROTATED = STRETCHED @ np.array([[np.cos(ANGLE), -np.sin(ANGLE)], [np.sin(ANGLE), np.cos(ANGLE)]])
OFFSET = RNG.normal(size=D)
X = RNG.normal(size=(B, Z)) @ STRETCHED.T + OFFSET + S * RNG.normal(size=(B, D))


class Fitted:
    """The pair on an engine with these weights: q(z | x) = N(A (x − b) + shift, diag variance)."""

    def __init__(self, both, engine, loading, variance, shift=0.0):
        model = VAEModel.model_validate(
            {"prior": {"dim": Z}, "decoder": {"hidden": ()}, "likelihood": {"kind": "gaussian"}}
        )
        linear = {"encoder": {"hidden": (), "activate_outputs": False}, "features": Z + 1}
        networks = VAE.realisable(model, VAE.guide_spec.model_validate(linear), D)
        self.batch = both.rows({"x": X})
        self.program = both.program(engine, VAE, networks, data_size=B)
        self.state = self.program.init(self.batch)
        mean = np.linalg.solve(loading.T @ loading + S**2 * np.eye(Z), loading.T)
        posterior = np.zeros((2 * Z, Z + 1))
        posterior[:Z, :Z], posterior[Z:, Z] = np.eye(Z), np.log(variance)
        weights = {
            "decoder.weight_0": np.concatenate([loading, np.zeros((D, Z))]),
            "decoder.bias_0": np.concatenate([OFFSET, np.full(D, 2 * np.log(S))]),
            "encoder.weight_0": np.concatenate([mean, np.zeros((1, D))]),
            "encoder.bias_0": np.concatenate([shift - mean @ OFFSET, [1.0]]),
            "posterior.weight": posterior,
        }
        self.state = self.program.load_weights(self.state, weights)

    def terms(self, particles=DRAWS):
        return self.program.terms(self.state, self.batch, seed=0, particles=particles)


def evidence(loading):
    return multivariate_normal(OFFSET, loading @ loading.T + S**2 * np.eye(D)).logpdf(X)


def precision(loading):
    return np.eye(Z) + loading.T @ loading / S**2


def standard_errors(samples):
    """Of the mean over draws, (B,)."""
    return samples.std(0, ddof=1) / np.sqrt(len(samples))


def test_at_the_posterior_estimator_a_has_no_variance_and_b_has(both, engine):
    """AEVB's A is log p(x, z) − log q = log p(x) at every draw; B has the variance of log p(x | z)."""
    terms = Fitted(both, engine, STRETCHED, 1 / np.diag(precision(STRETCHED))).terms(50)
    np.testing.assert_allclose(terms.log_weight(), np.broadcast_to(evidence(STRETCHED), (50, B)), rtol=1e-10)
    assert (terms.elbo().std(0) > 0.1).all()
    terms = terms._replace(path=terms.log_posterior)
    for divergence, sign in ((KL(estimator="stl"), -1), (IWAE(), -1), (CUBO(), 1)):
        np.testing.assert_allclose(sign * divergence.reported(terms, 1.0), evidence(STRETCHED), rtol=1e-10)


def test_away_from_it_both_have_the_elbo_as_their_mean(both, engine):
    """log p(x) − KL(q ‖ posterior), KL in closed form."""
    shift, exact = np.array([0.3, -0.2]), 1 / np.diag(precision(STRETCHED))
    terms = Fitted(both, engine, STRETCHED, 1.8 * exact, shift).terms()
    gap = 0.5 * (1.8 - 1 - np.log(1.8)) * Z + 0.5 * (shift**2 / exact).sum()
    for samples in (terms.log_weight(), terms.elbo()):
        assert (np.abs(samples.mean(0) - evidence(STRETCHED) + gap) < LARGE * standard_errors(samples)).all()


def test_the_bounds_are_in_order(both, engine):
    """ELBO < IWAE (4) < log p(x) < CUBO, for every datum and by more than their errors."""
    terms = Fitted(both, engine, STRETCHED, 2.0 / np.diag(precision(STRETCHED)), np.array([0.3, -0.2])).terms()
    log_weight = terms.log_weight()

    def bounds(divergence, count):
        """(count, B): of as many groups of the draws."""
        bare = terms._replace(log_prior={}, log_posterior={}, kl={})
        groups = np.split(log_weight, count)
        return np.stack([divergence.reported(bare._replace(log_likelihood={"x": group}), 1.0) for group in groups])

    iwae, cubo, true = -bounds(IWAE(), DRAWS // 4), bounds(CUBO(), 20), evidence(STRETCHED)
    assert (log_weight.mean(0) + LARGE * standard_errors(log_weight) < iwae.mean(0)).all()
    assert (iwae.mean(0) + LARGE * standard_errors(iwae) < true).all()
    assert (true + LARGE * standard_errors(cubo) < cubo.mean(0)).all()


def test_the_best_diagonal_normal_leaves_the_gap_of_the_rotation(both, engine):
    """½ (Σ log diag Λ − log det Λ), Λ the posterior's precision: none with orthogonal columns."""
    inverse = precision(ROTATED)
    terms = Fitted(both, engine, ROTATED, 1 / np.diag(inverse)).terms()
    gap = 0.5 * (np.log(np.diag(inverse)).sum() - np.linalg.slogdet(inverse)[1])
    assert gap > 0.05
    samples = terms.log_weight()
    assert (np.abs(samples.mean(0) - evidence(ROTATED) + gap) < LARGE * standard_errors(samples)).all()
