from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp
from scipy.stats import norm

from guidebook.inference.metrics import (
    active_dimensions,
    aggregate_log_density,
    importance_bound,
    log_mean_exp,
    mutual_information,
    perplexity,
)


def encodings(rows, dimensions, seed, spread=1.0, width=0.5):
    rng = np.random.default_rng(seed)
    loc = spread * rng.normal(size=(rows, dimensions))
    scale = width * np.exp(0.3 * rng.normal(size=(rows, dimensions)))
    return loc + scale * rng.normal(size=loc.shape), loc, scale


@pytest.mark.parametrize(
    ("nll", "sentences", "tokens", "expected"),
    [
        (101.04, 3_761, 82_430, 100.5),  # PTB, LSTM language model (Li et al. 2019)
        (326.7, 10_000, 798_670, 59.77),  # Yahoo, He et al. 2019
        (328.6, 10_000, 798_670, 61.21),
    ],
)
def test_perplexities_of_the_papers(nll, sentences, tokens, expected):
    assert perplexity(nll, sentences, tokens) == pytest.approx(expected, abs=0.05)


def test_a_hopeless_perplexity_is_infinite():
    assert perplexity(1e6, 10, 100) == np.inf


def test_log_mean_exp_neither_overflows_nor_loses_minus_infinity():
    values = np.array([[1000.0, -np.inf, -2000.0], [1000.0, -np.inf, -np.inf]])
    np.testing.assert_allclose(log_mean_exp(values), [1000.0, -np.inf, -2000.0 - np.log(2)])


def test_importance_bound_of_equal_weights_is_exact():
    bound = importance_bound(np.full((50, 3), -7.0))
    np.testing.assert_allclose(bound.log_evidence, -7.0)
    np.testing.assert_allclose(bound.variance, 0.0, atol=1e-30)
    np.testing.assert_allclose(bound.effective, 50.0)


def test_the_standard_error_is_that_of_repeated_estimates():
    log_weights = 0.5 * np.random.default_rng(0).normal(size=(4000, 200, 1)) - 3.0
    bounds = [importance_bound(one) for one in log_weights]
    spread = np.std([bound.log_evidence for bound in bounds])
    stated = np.sqrt(np.mean([bound.variance for bound in bounds]))
    assert stated == pytest.approx(spread, rel=0.05)


def test_aggregate_density_equals_the_sum_over_components():
    z, loc, scale = encodings(37, 3, seed=0)
    direct = norm.logpdf(z[:, None], loc, scale).sum(-1)
    expected = logsumexp(direct, axis=1) - np.log(37)
    for own in (None, norm.logpdf(z, loc, scale).sum(-1)):
        for limit in (1, 100, 1 << 21):
            found = aggregate_log_density(z, loc, scale, own=own, limit=limit)
            np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_a_codebook_holds_log_m_nats():
    z, loc, scale = encodings(64, 4, seed=1, spread=100.0, width=1e-3)
    information = mutual_information(z, loc, scale)
    assert information.mutual_information == pytest.approx(np.log(64), abs=1e-12)
    assert information.ceiling == np.log(64)


def test_a_collapsed_guide_holds_nothing():
    z = np.random.default_rng(0).normal(size=(500, 8))
    found = mutual_information(z, np.zeros((500, 8)), np.ones((500, 8))).mutual_information
    assert abs(found) < 1e-12


@given(st.integers(2, 60), st.integers(1, 6), st.integers(0, 10_000), st.floats(-2, 2), st.floats(-6, 2))
@settings(max_examples=100)
def test_information_never_passes_its_ceiling(rows, dimensions, seed, spread, width):
    found = mutual_information(*encodings(rows, dimensions, seed, 10**spread, 10**width))
    assert found.mutual_information <= found.ceiling + 1e-12


def test_information_is_below_the_kl_and_the_rest_is_the_marginals_mismatch():
    """One dimension: KL(q(z) ‖ p(z)) by quadrature. Tolerance: four standard errors of 4,000 draws."""
    z, loc, scale = encodings(4_000, 1, seed=3, spread=1.3)
    kl = 0.5 * (loc**2 + scale**2 - 2 * np.log(scale) - 1).sum(-1).mean()
    grid = np.linspace(-12, 12, 4001)
    log_q = aggregate_log_density(grid[:, None], loc, scale)
    mismatch = np.trapezoid(np.exp(log_q) * (log_q - norm.logpdf(grid)), grid)
    information = mutual_information(z, loc, scale).mutual_information
    own = norm.logpdf(z, loc, scale).sum(-1)
    error = (own - aggregate_log_density(z, loc, scale, own=own)).std() / np.sqrt(4_000)
    assert abs(kl - mismatch - information) < 4 * error
    assert information < kl


def test_the_estimate_agrees_with_the_one_from_the_exact_entropy():
    """He et al. 2019 use the analytic entropy: same expectation, other noise."""
    z, loc, scale = encodings(3_000, 5, seed=4, spread=0.8)
    entropy = (0.5 * (1 + np.log(2 * np.pi)) + np.log(scale)).sum(-1)
    theirs = -entropy - aggregate_log_density(z, loc, scale)
    ours = mutual_information(z, loc, scale).mutual_information
    assert abs(theirs.mean() - ours) < 4 * np.sqrt(5 / 2 / 3_000)


def test_planted_active_units_and_a_strict_threshold():
    rng = np.random.default_rng(0)
    means = np.concatenate([rng.normal(size=(400, 3)), 0.05 * rng.normal(size=(400, 5))], -1)
    assert active_dimensions(means).tolist() == [True] * 3 + [False] * 5
    at_threshold = np.array([[0.0], [1.0]])  # unbiased variance 0.5
    assert not active_dimensions(at_threshold, threshold=0.5).any()
    assert active_dimensions(at_threshold, threshold=0.5 - 1e-12).all()
    assert not active_dimensions(means[:1]).any()


@pytest.mark.slow
def test_the_whole_ptb_test_set_takes_seconds_and_bounded_memory():
    z, loc, scale = encodings(3_761, 32, seed=5)
    assert 0 < mutual_information(z, loc, scale).mutual_information <= np.log(3_761)
