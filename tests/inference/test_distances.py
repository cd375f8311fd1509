"""The distances of `info_vae` between q(z) = N(m, t²) and p(z) = N(n, s²) per dimension: MMD, energy, sliced Wasserstein.

Each statistic against a loop over its definition, and on average against a closed form or a rule of many nodes.
"""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from numpy.polynomial.hermite_e import hermegauss
from scipy.stats import norm

from guidebook.inference import InfoVAE

M, T, N, S = 0.6, 0.7, -0.2, 1.3
ROWS, BATCHES = 12, 4000
LARGE = 4.5  # standard errors: false alarms below 1e-5 a comparison
SCALE = 2.0  # of the kernel: 2 D · bandwidth², D = 1


def kernel_of(divergence):
    """What one pair of points adds to a U-statistic, (D,) and (D,)."""
    if divergence.distance == "energy":
        return lambda a, b: -np.sqrt(((a - b) ** 2).sum(-1))
    if divergence.kernel == "imq":
        return lambda a, b: 2.0 * a.shape[-1] / (2.0 * a.shape[-1] + ((a - b) ** 2).sum(-1))
    return lambda a, b: np.exp(-((a - b) ** 2).sum(-1) / (2.0 * a.shape[-1]))


KINDS = [InfoVAE(kernel="imq"), InfoVAE(kernel="rbf"), InfoVAE(distance="energy")]
ARRAY = {"numpy": np.asarray, "torch": torch.tensor, "jax": jnp.asarray}


@pytest.fixture(params=KINDS, ids=lambda d: f"{d.distance} {d.kernel}")
def divergence(request):
    return request.param


@pytest.fixture(params=list(ARRAY))
def array(request):
    with jax.enable_x64(True):
        yield ARRAY[request.param]


def draws(rows, dimensions):
    rng = np.random.default_rng(1)
    return M + T * rng.normal(size=(rows, dimensions)), N + S * rng.normal(size=(rows, dimensions))


FILLED = np.array([1.0, 1.0, 0.0, 1.0, 1.0, 0.0, 1.0])


def test_the_statistic_is_the_loop_over_pairs_of_real_rows(divergence, array):
    z, prior = draws(len(FILLED), 3)
    real, kernel = np.flatnonzero(FILLED), kernel_of(divergence)
    pairs = list(itertools.permutations(real, 2))
    wanted = sum(np.mean([kernel(one[i], one[j]) for i, j in pairs]) for one in (z, prior))
    wanted -= 2 * np.mean([kernel(z[i], prior[j]) for i in real for j in real])
    found = float(divergence._between(array(z), array(prior), array(FILLED)))
    assert found == pytest.approx(wanted, rel=1e-9)


def test_the_sliced_distance_is_that_of_the_best_matching_of_real_rows(array):
    z, prior = draws(len(FILLED), 3)
    sliced = InfoVAE(distance="sliced_wasserstein", projections=4)
    directions = np.random.default_rng(0).standard_normal((3, 4))
    real = np.flatnonzero(FILLED)
    best = []
    for direction in (directions / np.linalg.norm(directions, axis=0)).T:
        ours, theirs = z[real] @ direction, prior[real] @ direction
        best.append(min(((ours - np.array(order)) ** 2).mean() for order in itertools.permutations(theirs)))
    found = float(sliced._between(array(z), array(prior), array(FILLED)))
    assert found == pytest.approx(np.mean(best), rel=1e-9)


def exact(divergence, m, t):
    """In one dimension: E k(z, z') + E k(y, y') − 2 E k(z, y), each from the law N(mean, variance) of the difference."""
    nodes, mass = hermegauss(200)

    def expected(mean, variance):
        if divergence.distance == "energy":  # of a folded normal
            x = np.linspace(-12, 12, 200_001)
            return -np.trapezoid(np.abs(mean + np.sqrt(variance) * x) * np.exp(-0.5 * x**2), x) / np.sqrt(2 * np.pi)
        if divergence.kernel == "rbf":
            return np.exp(-(mean**2) / (SCALE + 2 * variance)) / np.sqrt(1 + 2 * variance / SCALE)
        return mass @ (SCALE / (SCALE + (mean + np.sqrt(variance) * nodes) ** 2)) / mass.sum()

    return expected(0.0, 2 * t**2) + expected(0.0, 2 * S**2) - 2 * expected(m - N, t**2 + S**2)


def estimates(divergence, m, t):
    """The statistic of each of many batches (BATCHES,), and its gradients to m and log t (2, BATCHES)."""
    noise = torch.tensor(np.random.default_rng(0).standard_normal((2, BATCHES, ROWS, 1)))
    point = torch.tensor(np.repeat([[m], [np.log(t)]], BATCHES, 1), requires_grad=True)

    def one(loc, log_scale, noise, other):
        rows = torch.ones(ROWS, dtype=noise.dtype)
        return divergence._between(loc + torch.exp(log_scale) * noise, N + S * other, rows)

    found = torch.vmap(one)(point[0], point[1], *noise)
    return found.detach().numpy(), torch.autograd.grad(found.sum(), point)[0].numpy()


def close(found, wanted):
    return abs(found.mean() - wanted) < LARGE * found.std(ddof=1) / np.sqrt(BATCHES)


def test_value_and_gradient_are_unbiased(divergence):
    value, (by_m, by_t) = estimates(divergence, M, T)
    step = 1e-4
    assert exact(divergence, M, T) > 0.02
    assert close(value, exact(divergence, M, T))
    assert close(by_m, (exact(divergence, M + step, T) - exact(divergence, M - step, T)) / (2 * step))
    ends = [exact(divergence, M, T * np.exp(sign * step)) for sign in (1, -1)]
    assert close(by_t, (ends[0] - ends[1]) / (2 * step))


def test_where_q_is_p_it_is_nothing_in_expectation_and_least(divergence):
    assert exact(divergence, N, S) == pytest.approx(0.0, abs=1e-9)
    value, gradients = estimates(divergence, N, S)
    assert all(close(found, 0.0) for found in (value, *gradients))
    for m, t in ((N + 0.3, S), (N - 0.3, S), (N, 1.3 * S), (N, S / 1.3)):
        assert exact(divergence, m, t) > 1e-4


def test_the_sliced_distance_of_many_rows_is_that_of_the_normals():
    """(m − n)² + (t − s)² for every direction, at the quantiles of both."""
    quantiles = norm.ppf((np.arange(200_000) + 0.5) / 200_000)[:, None]
    rng = np.random.default_rng(0)
    z, prior = (rng.permutation(loc + scale * quantiles) for loc, scale in ((M, T), (N, S)))
    found = InfoVAE(distance="sliced_wasserstein", projections=2)._between(z, prior, np.ones(len(z)))
    assert found == pytest.approx((M - N) ** 2 + (T - S) ** 2, rel=1e-3)
