"""Every divergence against closed forms: p(x, z) = Z · N(z; 0, s²), q = N(m, t²), θ shifts log p(x | z) by θ z.

The same functions run on both libraries' arrays; values and both sides' gradients are compared in standard errors.
"""

from __future__ import annotations

import sys
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from numpy.polynomial.hermite_e import hermegauss
from scipy import integrate

from guidebook.engines.terms import Sides, Terms
from guidebook.inference import (
    CUBO,
    IWAE,
    KL,
    TVO,
    FDivergence,
    Fisher,
    GeometricJensenShannon,
    Renyi,
    ReweightedWakeSleep,
    TargetRate,
)

LOG_Z, S, M, T = -1.3, 0.8, 0.5, 0.9
GROUPS, PARTICLES = 2000, 500  # a million draws
NOISE = np.random.default_rng(0).standard_normal((PARTICLES, GROUPS))
POINT = np.array([0.0, M, np.log(T)])  # θ, m, log t
LARGE = 4.5  # standard errors: false alarms below 1e-5 a comparison


def log_normal(xp, z, loc, scale):
    return -0.5 * ((z - loc) / scale) ** 2 - xp.log(scale) - 0.5 * np.log(2 * np.pi)


def terms_of(xp, stop, point, noise):
    """`Terms` at draws m + t ε, (S, B); θ reaches the likelihood, m and t the guide."""
    theta, m, t = point[0], point[1], xp.exp(point[2])
    z = m + t * noise
    prior = log_normal(xp, z, 0.0 * m, S + 0.0 * m)
    likelihood = LOG_Z + theta * z
    q = log_normal(xp, z, m, t)
    path = log_normal(xp, z, stop(m), stop(t))
    score = log_normal(xp, stop(z), m, t)
    kl = (xp.log(S / t) + 0.5 * (t**2 + m**2) / S**2 - 0.5)[:, None]
    normal = xp.stack([m, t, 0.0 * m, S + 0.0 * m])[..., None]
    return Terms(
        {"x": likelihood},
        {"z": prior},
        {"z": q},
        {"z": kl},
        xp.ones_like(noise[0]),
        {"z": path},
        {"z": score},
        normal={"z": normal},
    )


def sides_of(found):
    return found if isinstance(found, Sides) else Sides(found, found, found)


def measured(library, divergence, weight=1.0):
    """Value (B,) and gradient (3, B) per group of particles: θ by the model's side, m and log t by the guide's."""
    if library == "torch":
        point = torch.tensor(np.repeat(POINT[:, None], GROUPS, 1), requires_grad=True)
        found = sides_of(divergence.loss(terms_of(torch, torch.Tensor.detach, point, torch.tensor(NOISE)), weight))
        by_model, by_guide = (
            torch.autograd.grad(part.sum(), point, retain_graph=True)[0].numpy() for part in (found.model, found.guide)
        )
        return found.value.detach().numpy(), np.concatenate([by_model[:1], by_guide[1:]])
    with jax.enable_x64(True):
        point, noise = jnp.asarray(np.repeat(POINT[:, None], GROUPS, 1)), jnp.asarray(NOISE)

        def side(point, number):
            return sides_of(divergence.loss(terms_of(jnp, jax.lax.stop_gradient, point, noise), weight))[number].sum()

        by_model, by_guide = (np.asarray(jax.grad(side)(point, number)) for number in (1, 2))
        value = sides_of(divergence.loss(terms_of(jnp, jax.lax.stop_gradient, point, noise), weight)).value
        return np.asarray(value), np.concatenate([by_model[:1], by_guide[1:]])


@pytest.fixture(params=["torch", "jax"])
def library(request):
    return request.param


def density(x, loc, scale):
    return np.exp(-0.5 * ((x - loc) / scale) ** 2) / scale / np.sqrt(2 * np.pi)


def expected(function, m, t):
    """E_q of function(z, log w) by quadrature; log w at θ."""
    return integrate.quad(lambda z: density(z, m, t) * function(z), -12, 12, epsabs=1e-13, limit=400)[0]


def log_weight(z, theta, m, t):
    return LOG_Z + theta * z + np.log(density(z, 0, S)) - np.log(density(z, m, t))


def renyi(alpha, theta, m, t):
    order = 1 - alpha
    return -np.log(expected(lambda z: np.exp(order * log_weight(z, theta, m, t)), m, t)) / order


def elbo(theta, m, t):
    return -expected(lambda z: log_weight(z, theta, m, t), m, t)


def log_evidence(theta):
    return LOG_Z + 0.5 * (theta * S) ** 2


def fisher(theta, m, t):
    """−E log p(x | z) + E (∂_z log q − ∂_z log p(z))², the derivatives by differences."""

    def scores(z):
        ends = np.array([z - 1e-4, z + 1e-4])
        return np.diff(np.log(density(ends, m, t)) - np.log(density(ends, 0, S)))[0] / 2e-4

    return expected(lambda z: -LOG_Z - theta * z + scores(z) ** 2, m, t)


def reconstruction(theta, m, t):
    return expected(lambda z: LOG_Z + theta * z, m, t)


def skewed(alpha):
    """−E log p(x | z) + (1 − α) KL(q ‖ G) + α KL(p ‖ G), G ∝ q^α p^(1 − α), by quadrature."""

    def value(theta, m, t):
        def mean(z):
            return density(z, m, t) ** alpha * density(z, 0, S) ** (1 - alpha)

        log_mass = np.log(integrate.quad(mean, -12, 12, epsabs=1e-13, limit=400)[0])
        kls = [
            expected(lambda z, at=at: np.log(density(z, *at) / mean(z)) + log_mass, *at) for at in ((m, t), (0.0, S))
        ]
        return -reconstruction(theta, m, t) + (1 - alpha) * kls[0] + alpha * kls[1]

    return value


def rated(nats):
    def value(theta, m, t):
        kl = expected(lambda z: np.log(density(z, m, t) / density(z, 0, S)), m, t)
        return -reconstruction(theta, m, t) + 2.0 * abs(kl - nats)

    return value


def f_exact(f):
    """D_f(p ‖ q) with p normalised, as a function of the point."""

    def value(theta, m, t):
        return expected(lambda z: f(np.exp(log_weight(z, theta, m, t) - log_evidence(theta))), m, t)

    return value


def tvo(betas, side):
    def value(theta, m, t):
        total = 0.0
        for before, after in pairwise(betas):
            beta = before if side == "lower" else after
            mass = expected(lambda z, b=beta: np.exp(b * log_weight(z, theta, m, t)), m, t)
            first = expected(
                lambda z, b=beta: np.exp(b * log_weight(z, theta, m, t)) * log_weight(z, theta, m, t), m, t
            )
            total -= (after - before) * first / mass
        return total

    return value


def slope(function, place):
    """∂/∂point[place] by central differences; the point's last is log t."""
    step = 1e-4
    moved = [POINT.copy() for _ in range(2)]
    moved[0][place] += step
    moved[1][place] -= step
    values = [function(p[0], p[1], np.exp(p[2])) for p in moved]
    return (values[0] - values[1]) / (2 * step)


F = {
    "forward_kl": lambda t: t * np.log(t),
    "jensen_shannon": lambda t: 0.5 * (t * np.log(t) - (t + 1) * np.log(0.5 * (t + 1))),
    "hellinger": lambda t: 0.5 * (np.sqrt(t) - 1) ** 2,
    "total_variation": lambda t: 0.5 * np.abs(t - 1),
    "alpha": lambda t: (t**0.5 - 1 - 0.5 * (t - 1)) / (0.5 * -0.5),
}
TVO_LOWER, TVO_UPPER = TVO(partitions=4), TVO(partitions=4, side="upper")
UPPER_SUM = tvo(TVO_UPPER.betas, "upper")


def guided(divergence, guide, model=elbo, value=None):
    return pytest.param(divergence, value or model, model, guide, id=repr(divergence)[:60])


CASES = [
    *(guided(KL(estimator=e), elbo) for e in ("analytic", "sampled", "stl", "score")),
    *(guided(Renyi(alpha=a), lambda *p, a=a: renyi(a, *p), lambda *p, a=a: renyi(a, *p)) for a in (0.5, -0.5, 2.0)),
    guided(Renyi(alpha=0.5, estimator="stl"), None, lambda *p: renyi(0.5, *p)),
    guided(IWAE(), lambda *p: -log_evidence(p[0]), lambda *p: -log_evidence(p[0])),
    guided(IWAE(estimator="dreg"), lambda *p: -log_evidence(p[0]), lambda *p: -log_evidence(p[0])),
    guided(CUBO(), lambda *p: -renyi(-1, *p), lambda *p: -log_evidence(p[0]), lambda *p: -renyi(-1, *p)),
    guided(TVO_LOWER, tvo(TVO_LOWER.betas, "lower"), tvo(TVO_LOWER.betas, "lower")),
    guided(TVO_UPPER, lambda *p: -UPPER_SUM(*p), lambda *p: -log_evidence(p[0]), lambda *p: -UPPER_SUM(*p)),
    *(
        guided(FDivergence(f=f, estimator=e), f_exact(F[f]))
        for f in F
        for e in ("path", "score")
        if (f, e) != ("total_variation", "path")
    ),
    guided(Fisher(), fisher, fisher),
    *(guided(GeometricJensenShannon(alpha=a), skewed(a), skewed(a)) for a in (0.0, 0.3, 1.0)),
    *(guided(TargetRate(nats=n, strength=2.0), rated(n), rated(n)) for n in (0.01, 3.0)),
    guided(ReweightedWakeSleep(), f_exact(F["forward_kl"]), lambda *p: -log_evidence(p[0])),
]
THIS = sys.modules[__name__]
BIAS = 3.0 / PARTICLES
"""Self-normalised weights and logarithms of means are biased by O(1/S): allowed beside the Monte Carlo error."""


@pytest.mark.parametrize(("divergence", "value", "model", "guide"), CASES)
def test_value_and_both_gradients(library, divergence, value, model, guide):
    found, gradient = measured(library, divergence)
    wanted = [value(POINT[0], M, T), slope(model, 0), *([slope(guide, place) for place in (1, 2)] if guide else ())]
    for estimate, exact in zip([found, *gradient], wanted, strict=False):
        error = estimate.std(ddof=1) / np.sqrt(GROUPS)
        assert abs(estimate.mean() - exact) < LARGE * error + BIAS * max(1.0, abs(exact)), (estimate.mean(), exact)


@pytest.mark.parametrize("divergence", [param.values[0] for param in CASES], ids=lambda d: repr(d)[:60])
def test_both_libraries_agree(divergence):
    ours, theirs = measured("torch", divergence), measured("jax", divergence)
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-7, atol=1e-9)


def test_the_bounds_are_in_order(library):
    below, tight, above = (measured(library, d)[0].mean() for d in (KL(estimator="sampled"), IWAE(), CUBO()))
    assert -below < -tight < LOG_Z + 0.01 < above + 0.02


def test_the_limits_of_renyi_are_the_elbo_and_the_iwae_bound():
    near_one = measured("torch", Renyi(alpha=1 - 1e-7))
    for one, other in zip(near_one, measured("torch", KL(estimator="sampled")), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)
    for one, other in zip(measured("torch", Renyi(alpha=0.0)), measured("torch", IWAE()), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9)
    for one, other in zip(measured("torch", TVO(partitions=1)), measured("torch", KL(estimator="score")), strict=True):
        np.testing.assert_allclose(one.mean(), other.mean(), atol=0.02)


def test_dreg_keeps_its_signal_as_particles_grow_and_the_path_loses_it(monkeypatch):
    """Signal-to-noise of the guide's gradient, few particles against many (Rainforth et al. 2018; Tucker et al. 2019)."""

    def ratio(estimator, particles):
        monkeypatch.setattr(THIS, "NOISE", np.random.default_rng(1).standard_normal((particles, GROUPS)))
        gradient = measured("torch", IWAE(estimator=estimator))[1][1]
        return abs(gradient.mean()) / gradient.std()

    assert ratio("dreg", 256) > 2 * ratio("dreg", 4)
    assert ratio("pathwise", 256) < ratio("pathwise", 4)


LEAST = [
    *(KL(estimator=e) for e in ("analytic", "sampled", "stl", "score")),
    *(Renyi(alpha=a) for a in (0.5, 2.0)),
    IWAE(estimator="dreg"),
    CUBO(),
    CUBO(order=3.0),
    TVO_LOWER,
    TVO_UPPER,
    *(FDivergence(f=f, estimator=e) for f in F for e in ("path", "score") if (f, e) != ("total_variation", "path")),
    FDivergence(tail_adaptive=True),
    ReweightedWakeSleep(),
    *(GeometricJensenShannon(alpha=a) for a in (0.0, 0.3, 1.0)),
    Fisher(),
]


@pytest.mark.parametrize("divergence", LEAST, ids=lambda d: repr(d)[:60])
def test_the_guide_rests_at_the_posterior_and_is_drawn_back_to_it(monkeypatch, divergence):
    """At θ = 0 the prior N(0, s²) is the posterior, and where q is it nothing is lost; `iwae` of many pulls least."""
    few = 8 if divergence.kind == "iwae" else 100
    monkeypatch.setattr(THIS, "GROUPS", 200_000 // few)
    monkeypatch.setattr(THIS, "NOISE", np.random.default_rng(2).standard_normal((few, 200_000 // few)))

    def at(m, log_t):
        monkeypatch.setattr(THIS, "POINT", np.array([0.0, m, np.log(S) + log_t]))
        value, gradient = measured("torch", divergence)
        errors = gradient.std(1, ddof=1) / np.sqrt(GROUPS)
        return value, gradient.mean(1)[1:], LARGE * errors[1:]

    value, gradient, allowed = at(0.0, 0.0)
    np.testing.assert_allclose(
        value, LOG_Z if divergence.bounds == "above" or divergence == TVO_UPPER else -LOG_Z, rtol=1e-9
    )
    assert (np.abs(gradient) <= allowed + 1e-12).all(), (gradient, allowed)
    for move in (-0.3, 0.3):
        for place, point in enumerate(((move, 0.0), (0.0, move))):
            _, gradient, allowed = at(*point)
            assert np.sign(move) * gradient[place] > allowed[place], (point, gradient, allowed)


def exact_bound(alpha, m, log_t):
    """−E of the Rényi bound of two particles at θ = 0, by a rule of 80² nodes; α = 0: IWAE."""
    nodes, mass = hermegauss(80)
    mass = mass / mass.sum()
    log_w = log_weight(m + np.exp(log_t) * nodes, 0.0, m, np.exp(log_t))
    pairs = np.logaddexp((1 - alpha) * log_w[:, None], (1 - alpha) * log_w[None]) - np.log(2)
    return -mass @ pairs @ mass / (1 - alpha)


@pytest.mark.parametrize(
    ("divergence", "alpha"),
    [(IWAE(), 0), (IWAE(estimator="dreg"), 0), (IWAE(estimator="stl"), 0), (Renyi(alpha=0.5), 0.5), (Renyi(alpha=-1.0), -1)],
)  # fmt: skip
def test_the_bound_of_two_particles_and_its_gradient_without_bias(library, monkeypatch, divergence, alpha):
    """A million draws; thirty comparisons: false alarm below 3e-4. Of these only "stl" is biased."""
    monkeypatch.setattr(THIS, "GROUPS", 500_000)
    monkeypatch.setattr(THIS, "NOISE", np.random.default_rng(3).standard_normal((2, 500_000)))
    value, gradient = measured(library, divergence)
    _, m, log_t = POINT
    ends = [
        [exact_bound(alpha, m + a * 1e-4, log_t + b * 1e-4) for a, b in pair]
        for pair in (((1, 0), (-1, 0)), ((0, 1), (0, -1)))
    ]
    exact = np.array([exact_bound(alpha, m, log_t), *((up - down) / 2e-4 for up, down in ends)])
    found = np.stack([value, *gradient[1:]])
    errors = found.std(1, ddof=1) / np.sqrt(GROUPS)
    far = np.abs(found.mean(1) - exact) / errors
    assert (far[:1] if divergence.estimator == "stl" else far).max() < LARGE, far
    if divergence.estimator == "stl":
        assert far[1:].max() > 20


def test_sticking_the_landing_has_no_variance_at_the_posterior(monkeypatch):
    monkeypatch.setattr(THIS, "POINT", np.array([0.0, 0.0, np.log(S)]))
    for estimator in ("stl", "sampled"):
        value, gradient = measured("torch", KL(estimator=estimator))
        np.testing.assert_allclose(value, -LOG_Z, rtol=1e-12)
        assert (np.abs(gradient[1:]).max() < 1e-12) == (estimator == "stl")


def test_the_fisher_divergence_is_least_and_nothing_where_q_is_p(monkeypatch):
    monkeypatch.setattr(THIS, "POINT", np.array([0.0, 0.0, np.log(S)]))
    value, gradient = measured("torch", Fisher())
    np.testing.assert_allclose(value, -LOG_Z, rtol=1e-12)
    np.testing.assert_allclose(gradient[1:], 0.0, atol=1e-12)
    for m, log_t in ((0.2, 0.0), (-0.2, 0.0), (0.0, 0.2), (0.0, -0.2)):
        monkeypatch.setattr(THIS, "POINT", np.array([0.0, m, np.log(S) + log_t]))
        assert measured("torch", Fisher())[0].min() > -LOG_Z + 0.01


def test_tail_adaptive_weights_are_ranks():
    """No particle weighs more than S times the least, however heavy the tail."""
    log_weight = np.random.default_rng(0).standard_cauchy((50, 3)) * 10
    found = FDivergence(tail_adaptive=True)._ranked(log_weight)
    np.testing.assert_allclose(found.mean(0), 1.0)
    np.testing.assert_allclose(found.max(0) / found.min(0), 50.0)
    assert (np.argsort(found, 0) == np.argsort(log_weight, 0)).all()
