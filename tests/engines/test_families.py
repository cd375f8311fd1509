"""Every prior and posterior on both engines: its draws follow its density, KLs and gradients are right, engines agree."""

from __future__ import annotations

import itertools
from typing import get_args

import equinox as eqx
import jax
import numpy as np
import pytest
from scipy import stats

from guidebook.guides import posteriors
from guidebook.guides.posteriors import Posterior
from guidebook.models import priors
from guidebook.models.priors import Prior

pytestmark = [
    pytest.mark.usefixtures("_float64"),
    pytest.mark.filterwarnings("ignore:Out-of-support values"),  # asked for: a density is 0 there
]
Z, H, B = 2, 3, 4
FEATURES = np.random.default_rng(0).normal(size=(B, H))
PRIORS = {
    spec.model_fields["kind"].default: spec for spec in get_args(get_args(Prior)[0]) if spec is not priors.VampPrior
}
POSTERIORS = {spec.model_fields["kind"].default: spec for spec in get_args(get_args(Posterior)[0])}
SPHERE = {kind for kind, spec in (PRIORS | POSTERIORS).items() if spec.support == "sphere"}
PLAIN = [kind for kind in POSTERIORS if kind not in SPHERE]
CONTINUOUS = [kind for kind in PLAIN if POSTERIORS[kind].support in ("real", "box") and kind != "point_mass"]
DISCRETE = [kind for kind in PLAIN if POSTERIORS[kind].support in ("binary", "one_hot")]
FALSE_ALARM = 5.5
"""Standard errors: less than one false alarm in ten million comparisons."""


def random_weights(spec, seed=1, **sizes):
    """Every weight away from where it starts, so that all of them matter."""
    rng = np.random.default_rng(seed)
    found = {name: rng.normal(size=weight.shape, scale=0.7) for name, weight in spec.layout(**sizes).items()}
    return found | ({"variance": np.exp(found["variance"])} if "variance" in found else {})


def posterior(both, engine, kind, training=False):
    spec = POSTERIORS[kind]()
    module = both.realised(engine, spec, random_weights(spec, features=H, latent=Z), features=H, latent=Z)
    return both.Law(engine, module, FEATURES)


def prior(both, engine, kind, dim=Z):
    spec = PRIORS[kind](dim=dim)
    law = both.Law(engine, both.realised(engine, spec, random_weights(spec)))
    law.fn = law.fn.expand((B,))  # as in a plate
    return law


def support(law, kind, points=401):
    """Points (N, B, Z) that cover a row's mass, and the volume (B,) each stands for."""
    if kind in ("binary", "one_hot"):
        chosen = np.eye(Z) if kind == "one_hot" else np.array(list(itertools.product((0.0, 1.0), repeat=Z)))
        return np.repeat(chosen[:, None], B, 1), np.ones(B)
    draws = law.draws(2000)
    low, high = draws.min(0), draws.max(0)
    span = high - low
    low, high = (low - span, high + span) if kind == "real" else (low - 0.01 * span, high + 0.01 * span)
    share = (np.arange(points) + 0.5) / points
    grid = np.stack(np.meshgrid(share, share), -1).reshape(-1, 1, Z)
    return low + (high - low) * grid, (high - low).prod(-1) / points**2


def check_density(law, kind):
    """It integrates to one, and draws have the moments it gives."""
    z, volume = support(law, kind)
    mass = np.exp(law.log_prob(z)) * volume
    tolerance = {"real": 2e-3, "box": 1e-2}.get(kind, 1e-9)
    np.testing.assert_allclose(mass.sum(0), 1, atol=tolerance)
    draws = law.draws(20_000)
    for f in (lambda z: z, lambda z: z**2, lambda z: z[..., :1] * z[..., 1:]):
        mean = (mass[..., None] * f(z)).sum(0)
        error = f(draws).std(0) / np.sqrt(len(draws))
        slack = tolerance * (1 + np.abs(f(z)).max(initial=0, where=(mass > 1e-9)[..., None]))
        assert (np.abs(f(draws).mean(0) - mean) <= FALSE_ALARM * error + slack).all()


@pytest.mark.parametrize("kind", CONTINUOUS + DISCRETE)
def test_draws_of_a_posterior_follow_its_density(both, engine, kind):
    check_density(posterior(both, engine, kind), POSTERIORS[kind].support)


@pytest.mark.parametrize("kind", [kind for kind in PRIORS if kind not in SPHERE])
def test_draws_of_a_prior_follow_its_density(both, engine, kind):
    check_density(prior(both, engine, kind), PRIORS[kind].support)


def scipy_posterior(kind, weights):
    """The same family in SciPy: rows of frozen distributions, one a dimension or one a row."""
    spec = POSTERIORS[kind]()
    a, b, rest = np.split(FEATURES @ weights["weight"].T, [Z, 2 * Z], -1)
    if kind == "diagonal_normal":
        return stats.norm(a, np.exp(b / 2))
    if kind in ("laplace", "logistic"):
        return getattr(stats, kind)(a, np.exp(b))
    if kind == "uniform_box":
        length = 2 / (1 + np.exp(-b))
        return stats.uniform(-1 + (2 - length) / (1 + np.exp(-a)), length)
    if kind == "delta_normal":
        return _committed(spec, a, b)
    variance = np.exp(b)[..., None] * np.eye(Z)
    if kind == "low_rank_normal":
        factor = rest.reshape(B, Z, -1)
        covariance = factor @ factor.swapaxes(-1, -2) + variance
    else:
        lower = np.sqrt(variance)
        lower[:, 1, 0] = rest[:, 0]
        covariance = lower @ lower.swapaxes(-1, -2)
    return [stats.multivariate_normal(*moments) for moments in zip(a, covariance, strict=True)]


def _committed(spec, m, v):
    least, largest = spec.variances
    np.testing.assert_allclose(np.log([least, largest]) - [least, largest] + 2 * spec.rate + 1, 0, atol=1e-12)
    variance = least + (largest - least) / (1 + np.exp(-v))
    return stats.norm(np.sqrt(2 * spec.rate + 1 + np.log(variance) - variance + np.maximum(m, 0)), np.sqrt(variance))


@pytest.mark.parametrize(
    "kind",
    ["diagonal_normal", "low_rank_normal", "full_normal", "delta_normal", "laplace", "logistic", "uniform_box"],
)
def test_densities_are_those_of_scipy(both, engine, kind):
    law = posterior(both, engine, kind)
    z = law.draws(5)
    reference = scipy_posterior(kind, random_weights(POSTERIORS[kind](), features=H, latent=Z))
    if isinstance(reference, list):
        expected = np.stack([one.logpdf(z[:, row]) for row, one in enumerate(reference)], -1)
    else:
        expected = reference.logpdf(z).sum(-1)
    np.testing.assert_allclose(law.log_prob(z), expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("kind", [kind for kind in PLAIN if POSTERIORS[kind].pathwise])
def test_gradients_of_an_expectation_match_finite_differences(both, engine, kind):
    """With the same random numbers the mean over draws is a smooth function of the weights."""
    spec = POSTERIORS[kind]
    spec = spec(straight_through=False) if kind.startswith("relaxed") else spec()
    sizes = {"features": H, "latent": Z}
    weights = random_weights(spec, **sizes)
    direction = np.random.default_rng(2).normal(size=weights["weight"].shape)

    def law(step):
        moved = weights | {"weight": weights["weight"] + step * direction}
        return both.Law(engine, both.realised(engine, spec, moved, **sizes), FEATURES)

    def f(z):
        return (z**3 - z).sum(-1) + z.prod(-1)

    def training(step):
        one = law(step)
        return (_in_training(one) if kind.startswith("relaxed") else one).gradient(f, 50)

    _, gradient = training(0.0)
    step = 1e-5
    slope = (training(step)[0] - training(-step)[0]) / (2 * step)
    assert (gradient * direction).sum() == pytest.approx(slope, rel=1e-5, abs=1e-8)


def _in_training(law):
    """The relaxed draws, which evaluation does not have."""
    if law.engine == "pyro":
        law.module.train()
        law.fn = law.module(*map(law.array, law.arrays))
    else:
        law.module = _Training(law.module.weights, law.module)
        law.fn = law.module(*map(law.array, law.arrays))
    return law


class _Training(eqx.Module):
    weights: dict
    module: eqx.Module

    def __call__(self, h):
        module = eqx.tree_at(lambda module: module.weights, self.module, self.weights)
        return module(h, key=jax.random.key(0))


@pytest.mark.parametrize(
    ("q", "p"),
    [
        *itertools.product(
            ["diagonal_normal", "low_rank_normal", "full_normal", "delta_normal", "laplace", "logistic"],
            ["standard_normal", "diagonal_normal"],
        ),
        ("uniform_box", "uniform_box"),
        ("uniform_box", "diagonal_normal"),
        ("von_mises_fisher", "hyperspherical_uniform"),
        ("power_spherical", "hyperspherical_uniform"),
        ("bernoulli", "bernoulli"),
        ("categorical", "categorical"),
    ],
)
def test_analytic_kls_are_the_mean_of_their_samples(both, engine, q, p):
    q, p = posterior(both, engine, q), prior(both, engine, p)
    z = q.draws(20_000)
    ratio = q.log_prob(z) - p.log_prob(z)
    error = ratio.std(0) / np.sqrt(len(z))
    assert (np.abs(q.kl(p).sum(-1) - ratio.mean(0)) <= FALSE_ALARM * error + 1e-9).all()


def test_kls_between_laplace_and_normal_are_those_of_a_quadrature(both, engine):
    """Also from a normal to a Laplace, which no prior here is."""
    laplace, normal = posterior(both, engine, "laplace"), posterior(both, engine, "diagonal_normal")
    z = np.linspace(-40, 40, 40_001)
    for q, p in itertools.product((laplace, normal), repeat=2):
        first, second = (np.stack([_marginal(law, z, d) for d in range(Z)], -1) for law in (q, p))
        expected = (np.exp(first) * (first - second)).sum(0) * (z[1] - z[0])
        np.testing.assert_allclose(q.kl(p), expected, rtol=1e-4, atol=1e-5)


def _marginal(law, z, dimension):
    """log q(z_d), (N, B), of a law with independent dimensions."""
    at = np.zeros((len(z), B, Z))
    at[..., dimension] = z[:, None]
    both, none = law.log_prob(at), law.log_prob(np.zeros((1, B, Z)))
    scale = np.exp(both - none).sum(0) * (z[1] - z[0])
    return both - none - np.log(scale)


@pytest.mark.parametrize("kind", ["relaxed_bernoulli", "relaxed_categorical"])
def test_straight_through_draws_are_rounded_with_the_gradient_of_the_unrounded(both, engine, kind):
    sizes = {"features": H, "latent": Z}
    weights = random_weights(POSTERIORS[kind](), **sizes)
    gradients, draws = [], []
    for straight_through in (True, False):
        spec = POSTERIORS[kind](straight_through=straight_through)
        law = _in_training(both.Law(engine, both.realised(engine, spec, weights, **sizes), FEATURES))
        gradients.append(law.gradient(lambda z: z[..., 0] - 2 * z[..., 1], 50)[1])
        draws.append(law.draws(50))
        assert np.isfinite(law.log_prob(draws[-1])).all()
    np.testing.assert_allclose(*gradients, rtol=1e-10)
    assert set(np.unique(draws[0])) == {0.0, 1.0}
    np.testing.assert_array_equal(draws[0], np.round(draws[1]))


def test_the_delta_normal_spends_its_rate_in_every_dimension(both, engine):
    law = posterior(both, engine, "delta_normal")
    kl = law.kl(prior(both, engine, "standard_normal"))
    above = np.maximum(FEATURES @ random_weights(POSTERIORS["delta_normal"](), features=H, latent=Z)["weight"].T, 0)
    np.testing.assert_allclose(kl, 0.1 + above[:, :Z] / 2, rtol=1e-9)


def test_a_batch_normalised_normal_has_its_moments_and_at_least_its_kl(both, engine):
    """In training by the batch, so that KL ≥ Σ (gain² + shift²) / 2; in evaluation by the running moments."""
    spec, sizes = POSTERIORS["batch_normalised_normal"](), {"features": H, "latent": Z}
    weights = random_weights(spec, **sizes)
    law = both.Law(engine, both.realised(engine, spec, weights, **sizes), FEATURES)
    means = FEATURES @ weights["weight"][:Z].T
    running = weights["shift"] + 0.6 * (means - weights["mean"]) / np.sqrt(weights["variance"])
    np.testing.assert_allclose(both.numpy_of(law.fn.mean), running, rtol=1e-8)
    trained = _in_training(law)
    batch = weights["shift"] + 0.6 * (means - means.mean(0)) / means.std(0)
    np.testing.assert_allclose(both.numpy_of(trained.fn.mean), batch, rtol=1e-8)
    floor = (0.36 + weights["shift"] ** 2) / 2
    assert (trained.kl(prior(both, engine, "standard_normal")).mean(0) >= floor - 1e-9).all()


def test_a_point_mass_is_where_its_features_say(both, engine):
    law = posterior(both, engine, "point_mass")
    place = FEATURES @ random_weights(POSTERIORS["point_mass"](), features=H, latent=Z)["weight"].T
    np.testing.assert_allclose(law.draws(2), np.stack([place, place]), rtol=1e-12)
    standard = prior(both, engine, "standard_normal")
    np.testing.assert_allclose(law.kl(standard).sum(-1), -standard.log_prob(place), rtol=1e-12)


@pytest.mark.parametrize("kind", POSTERIORS)
def test_posteriors_agree_across_engines(both, kind):
    ours, theirs = (posterior(both, engine, kind) for engine in both.engines)
    z = ours.draws(6)
    if kind != "point_mass":
        np.testing.assert_allclose(ours.log_prob(z), theirs.log_prob(z), rtol=1e-9)
    for name, spec in PRIORS.items():
        kls = [q.kl(prior(both, q.engine, name)) for q in (ours, theirs) if spec.support == POSTERIORS[kind].support]
        if kls:
            assert (kls[0] is None) == (kls[1] is None), name
            np.testing.assert_allclose(*(kls if kls[0] is not None else (0, 0)), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", PRIORS)
def test_priors_agree_across_engines(both, kind):
    ours, theirs = (prior(both, engine, kind) for engine in both.engines)
    z = ours.draws(6)
    np.testing.assert_allclose(ours.log_prob(z), theirs.log_prob(z), rtol=1e-9)


@pytest.mark.parametrize("kind", ["von_mises_fisher", "power_spherical"])
def test_a_given_concentration_is_that_of_every_datum(both, engine, kind):
    spec = POSTERIORS[kind](concentration=7.0)
    sizes = {"features": H, "latent": Z}
    law = both.Law(engine, both.realised(engine, spec, random_weights(spec, **sizes), **sizes), FEATURES)
    assert spec.layout(**sizes)["weight"].shape == (Z, H)
    np.testing.assert_allclose(np.asarray(law.fn.concentration), np.full(B, 7.0))
    assert np.ptp(law.kl(prior(both, engine, "hyperspherical_uniform"))) < 1e-12


def test_every_kind_states_its_facts():
    for spec in (*PRIORS.values(), *POSTERIORS.values()):
        assert spec.support in ("real", "sphere", "box", "binary", "one_hot", None)
        assert isinstance(spec.factorised, bool)
    assert {kind for kind, spec in POSTERIORS.items() if not spec.pathwise} == {"bernoulli", "categorical"}
    assert posteriors.DeltaNormal(rate=0.5).variances[0] < 1 < posteriors.DeltaNormal(rate=0.5).variances[1]
    with pytest.raises(ValueError, match="low < high"):
        priors.UniformBox(low=1.0, high=-1.0)
