"""The Stein discrepancy of the aggregate posterior against its definition, quadrature and the identity of Stein.

q(z) = N(m, t²), p(z) = N(n, s²) per dimension; u(z, z') from derivatives of the kernel that JAX takes.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from numpy.polynomial.hermite_e import hermegauss

from guidebook.engines.terms import Terms
from guidebook.inference import InfoVAE, Stein
from guidebook.inference.divergences.aggregate import stein_discrepancy
from guidebook.models import BadInput

M, T, N, S = 0.6, 0.7, -0.2, 1.3
ROWS, BATCHES = 12, 4000
LARGE = 4.5  # standard errors: false alarms below 1e-5 a comparison


def kernel_of(kind, scale):
    def kernel(a, b):
        squares = ((a - b) ** 2).sum()
        return scale / (scale + squares) if kind == "imq" else jnp.exp(-squares / scale)

    return kernel


def by_definition(kind, scale, a, b, score):
    """u(a, b) for two points (D,)."""
    kernel = kernel_of(kind, scale)
    here, there = score(a), score(b)
    mixed = jax.jacfwd(jax.grad(kernel, 0), 1)(a, b)
    return (
        kernel(a, b) * here @ there
        + here @ jax.grad(kernel, 1)(a, b)
        + there @ jax.grad(kernel, 0)(a, b)
        + jnp.trace(mixed)
    )


def prior_score(z):
    return -(z - N) / S**2


def quadrature(kind, m, t):
    """KSD² in one dimension, with the kernel's scale 2."""
    nodes, mass = hermegauss(60)
    mass, z = mass / mass.sum(), m + t * nodes[:, None]
    with jax.enable_x64(True):
        u = jax.vmap(lambda a: jax.vmap(lambda b: by_definition(kind, 2.0, a, b, prior_score))(jnp.asarray(z)))
        return float(mass @ np.asarray(u(jnp.asarray(z))) @ mass)


def estimates(kind, m, t, gradient=False):
    """The U-statistic of each of many batches (BATCHES,), or its gradients to m and log t (2, BATCHES)."""
    noise = torch.tensor(np.random.default_rng(0).standard_normal((BATCHES, ROWS, 1)))
    point = torch.tensor(np.repeat([[m], [np.log(t)]], BATCHES, 1), requires_grad=True)

    def one(loc, log_scale, noise):
        z = loc + torch.exp(log_scale) * noise
        return stein_discrepancy(z, prior_score(z), torch.ones(ROWS, dtype=z.dtype), kind, 2.0)

    found = torch.vmap(one)(point[0], point[1], noise)
    return torch.autograd.grad(found.sum(), point)[0].numpy() if gradient else found.detach().numpy()


def close(found, exact):
    return abs(found.mean() - exact) < LARGE * found.std(ddof=1) / np.sqrt(BATCHES)


@pytest.fixture(params=["imq", "rbf"])
def kind(request):
    return request.param


@pytest.mark.parametrize("library", ["numpy", "torch", "jax"])
def test_the_statistic_is_the_mean_of_the_definition_over_pairs_of_real_rows(kind, library):
    rng = np.random.default_rng(1)
    z, rows = rng.normal(size=(6, 3)), np.array([1.0, 1.0, 0.0, 1.0, 1.0, 0.0])
    real = np.flatnonzero(rows)
    with jax.enable_x64(True):
        pairs = [
            float(by_definition(kind, 1.7, jnp.asarray(z[i]), jnp.asarray(z[j]), prior_score))
            for i in real
            for j in real
            if i != j
        ]
        array = {"numpy": np.asarray, "torch": torch.tensor, "jax": jnp.asarray}[library]
        found = float(stein_discrepancy(array(z), prior_score(array(z)), array(rows), kind, 1.7))
    assert found == pytest.approx(np.mean(pairs), rel=1e-10)


def test_value_and_gradient_against_quadrature(kind):
    step = 1e-4
    assert quadrature(kind, M, T) > 0.05
    assert close(estimates(kind, M, T), quadrature(kind, M, T))
    by_m, by_t = estimates(kind, M, T, gradient=True)
    assert close(by_m, (quadrature(kind, M + step, T) - quadrature(kind, M - step, T)) / (2 * step))
    ends = (quadrature(kind, M, T * np.exp(sign * step)) for sign in (1, -1))
    assert close(by_t, (next(ends) - next(ends)) / (2 * step))


def test_where_q_is_p_it_is_nothing_in_expectation_and_least(kind):
    assert close(estimates(kind, N, S), 0.0)
    assert quadrature(kind, N, S) == pytest.approx(0.0, abs=1e-4)  # the rule of 60 nodes is good to 2e-5
    for gradient in estimates(kind, N, S, gradient=True):
        assert close(gradient, 0.0)


def terms(z, moments):
    zeros = np.zeros((1, len(z)))
    normal = np.stack([np.broadcast_to(part, z.shape) for part in moments])
    reconstruction = np.linspace(-3, -2, len(z))[None]
    kl = np.full(z.shape, 0.25)
    return Terms(
        {"x": reconstruction},
        {"z": zeros},
        {"z": zeros},
        {"z": kl},
        np.ones(len(z)),
        latent={"z": z},
        normal={"z": normal},
    )


def test_the_kind_and_the_option_of_info_vae_weigh_it_alike(kind):
    z = np.random.default_rng(2).normal(size=(5, 2))
    found = terms(z, (M, T, N, S))
    distance = stein_discrepancy(z, prior_score(z), found.weight, kind, 2.0 * 2 * 0.7**2)
    none = -found.log_likelihood["x"][0]
    np.testing.assert_allclose(Stein(kernel=kind, bandwidth=0.7).loss(found, 3.0), none + 3 * distance)
    option = InfoVAE(distance="stein", kernel=kind, bandwidth=0.7, alpha=0.5, strength=3.5)
    np.testing.assert_allclose(option.loss(found, 2.0), none + 2 * 0.5 * 0.5 + 3 * distance)


def test_a_latent_that_is_not_normal_is_refused():
    found = terms(np.ones((2, 1)), (M, T, N, S))._replace(normal={})
    for divergence in (Stein(), InfoVAE(distance="stein")):
        with pytest.raises(BadInput, match="'z' is not"):
            divergence.loss(found, 1.0)
