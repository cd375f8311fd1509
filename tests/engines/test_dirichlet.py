"""Dirichlet laws of log weights on both engines, against mpmath, SciPy, enumeration, quadrature and each other."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import numpyro
import numpyro.distributions as numpyro_dist
import pyro
import pytest
import scipy.stats
import torch
from numpyro.infer import TraceMeanField_ELBO as NumPyroMeanField
from pyro.infer import TraceMeanField_ELBO as PyroMeanField
from scipy.special import digamma, gammaln, polygamma

from guidebook.engines.numpyro import dirichlet as in_jax
from guidebook.engines.numpyro import dirichlet_kl as kl_in_jax
from guidebook.engines.pyro import dirichlet as in_torch
from guidebook.engines.pyro import dirichlet_kl as kl_in_torch
from guidebook.models.errors import BadInput

DRAWS = 4000


class Torch:
    """What the tests ask of an engine, in NumPy arrays."""

    kl, LogDirichlet = kl_in_torch, in_torch.LogDirichlet

    def array(self, x, dtype="float64"):
        return torch.tensor(np.asarray(x)).to(getattr(torch, dtype))

    def gradients(self, f, *inputs, dtype="float64", seed=0):
        """f of the inputs, and the gradient of its sum in each."""
        inputs = [self.array(x, dtype).requires_grad_() for x in inputs]
        torch.manual_seed(seed)
        found = f(*inputs)
        return [found.detach().numpy(), *(g.numpy() for g in torch.autograd.grad(found.sum(), inputs))]

    def draw(self, q, shape=()):
        return q.rsample(torch.Size(shape))

    def divergence(self, q, p):
        return torch.distributions.kl_divergence(q, p)

    def mean_field(self, q, p):
        """The stock ELBO's loss, of a model and a guide with one latent."""

        def of(fn):
            with pyro.plate("rows", 2):
                pyro.sample("F", fn)

        return PyroMeanField().loss(lambda: of(p), lambda: of(q))


class Jax:
    kl, LogDirichlet = kl_in_jax, in_jax.LogDirichlet

    def array(self, x, dtype="float64"):
        return jnp.asarray(x, dtype)

    def gradients(self, f, *inputs, dtype="float64", seed=0):
        def both(*inputs):
            found, back = jax.vjp(f, *inputs)
            return found, *back(jnp.ones_like(found))

        self.key = jax.random.key(seed)
        return [np.asarray(x) for x in jax.jit(both)(*(self.array(x, dtype) for x in inputs))]

    def draw(self, q, shape=()):
        return q.sample(self.key, shape)

    def divergence(self, q, p):
        return numpyro_dist.kl_divergence(q, p)

    def mean_field(self, q, p):
        def of(fn):
            with numpyro.plate("rows", 2):
                numpyro.sample("F", fn)

        return float(NumPyroMeanField().loss(jax.random.key(0), {}, lambda: of(p), lambda: of(q)))


@pytest.fixture(params=[Torch(), Jax()], ids=["pyro", "numpyro"])
def on(request):
    return request.param


def exact_gamma_kl(a, b):
    """(a − b) ψ(a) − log Γ(a) + log Γ(b), in 60 digits."""
    return (a - b) * mpmath.digamma(a) - mpmath.loggamma(a) + mpmath.loggamma(b)


def exact_dirichlet_kl(a, b, atoms):
    return atoms * exact_gamma_kl(a / atoms, b / atoms) - exact_gamma_kl(a, b)


def exactly(f, *counts):
    """f of counts that broadcast, and its derivatives in their logarithms, as float64."""
    with mpmath.workdps(60):

        def one(*counts):
            logs = [mpmath.log(mpmath.mpf(float(count))) for count in counts]
            of_logs = lambda *logs: f(*map(mpmath.exp, logs))  # noqa: E731
            slopes = [
                mpmath.diff(of_logs, tuple(logs), tuple(int(i == j) for j in range(len(logs))))
                for i in range(len(logs))
            ]
            return np.array([float(x) for x in (f(*map(mpmath.mpf, map(float, counts))), *slopes)])

        return np.moveaxis(np.vectorize(one, signature=",".join(["()"] * len(counts)) + "->(n)")(*counts), -1, 0)


@pytest.mark.usefixtures("_float64")
@pytest.mark.parametrize(("dtype", "rtol"), [("float64", 1e-9), ("float32", 2e-5)])
def test_the_kl_of_two_gammas(on, dtype, rtol):
    """And its gradients in both log counts, from 1e-6 to 1e8 on either side, and where the two are near."""
    a = np.array([1e-6, 1e-3, 0.3, 7.999, 8.001, 90.0, 1e8])[:, None]
    b = np.array([1e-3, 0.3, 7.0, 9.0, 500.0])
    a, b = (np.concatenate((x.ravel(), more)) for x, more in zip(np.broadcast_arrays(a, b), ([3.0, 1e6], [3.3, 1.1e6]), strict=True))  # fmt: skip
    for true, found in zip(
        exactly(exact_gamma_kl, a, b), on.gradients(on.kl.gamma_kl, np.log(a), np.log(b), dtype=dtype), strict=True
    ):
        np.testing.assert_allclose(found, true, rtol=rtol, atol=rtol)


@pytest.mark.usefixtures("_float64")
@pytest.mark.parametrize(("dtype", "rtol"), [("float64", 1e-9), ("float32", 1e-5)])
def test_the_kl_of_two_symmetric_dirichlets(on, dtype, rtol):
    """And its gradients; at A = 1e16 and 1e20 the plain formula gives 384 and 0 in float64."""
    found = on.gradients(lambda a: on.kl.dirichlet_kl(a, on.array(np.log(4.0), dtype), 20), np.log([1e16, 1e20]), dtype=dtype)[0]  # fmt: skip
    np.testing.assert_allclose(found, [333.748, 421.246], atol=5e-4)
    a = np.array([1e-6, 0.1, 1.0, 40.0, 1e6, 1e20])[:, None, None]
    b, atoms = np.array([0.5, 4.0, 1e3])[:, None], np.array([2.0, 20.0, 300.0])
    a, b, atoms = (np.ravel(x) for x in np.broadcast_arrays(a, b, atoms))
    *true, _ = exactly(exact_dirichlet_kl, a, b, atoms)
    found = on.gradients(lambda a, b: on.kl.dirichlet_kl(a, b, on.array(atoms, dtype)), np.log(a), np.log(b), dtype=dtype)  # fmt: skip
    for expected, value in zip(true, found, strict=True):
        np.testing.assert_allclose(value, expected, rtol=rtol, atol=rtol * np.maximum(1, 10 * (dtype == "float32")))
    plain = np.array([(a < 1e7) & (a >= 1)])[0]
    naive = gammaln(a) - gammaln(b) + (a - b) * (digamma(a / atoms) - digamma(a)) + atoms * (gammaln(b / atoms) - gammaln(a / atoms))  # fmt: skip
    np.testing.assert_allclose(found[0][plain], naive[plain], rtol=1e-6 if dtype == "float64" else 2e-5, atol=1e-4)


@pytest.mark.usefixtures("_float64")
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_the_kl_of_symmetric_dirichlets_in_its_limits(on, dtype):
    """0 iff A = B; L_D / K to log(A/B) − 1 + B/A; nothing to divide with one atom."""
    kl = lambda a, b, atoms: np.asarray(on.kl.dirichlet_kl(on.array(np.log(a), dtype), on.array(np.log(b), dtype), atoms))  # noqa: E731 # fmt: skip
    counts = np.array([1e-3, 0.7, 7.0, 1e4, 1e12])
    assert (kl(counts, counts, 20) == 0).all()
    assert (kl(1.05 * counts, counts, 20) > 1e-3).all()
    assert (kl(0.95 * counts, counts, 20) > 1e-3).all()
    np.testing.assert_allclose(kl(3.0 * counts, counts, 1), 0, atol=1e-6)
    np.testing.assert_allclose(kl(3.0, 4.0, 1e6) / 1e6, np.log(3 / 4) - 1 + 4 / 3, rtol=1e-4)


CONCENTRATIONS = [
    [1e-8, 1e-8, 1e-8],
    [1e-6, 0.3, 1.0],
    [0.2, 0.5, 2.0],
    [3.0, 40.0, 120.0],
    [1e6, 3e6, 5e5],
    [1e8, 3e8, 2e8],
]


@pytest.mark.usefixtures("_float64")
@pytest.mark.parametrize("alpha", CONCENTRATIONS)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_draws_of_log_weights(on, alpha, dtype):
    """They sum to one; E log π = ψ(α) − ψ(Σα) and its gradient, Var log π and E π, in standard errors."""
    alpha, total, place = np.array(alpha), np.sum(alpha), np.arange(DRAWS) % 3
    logs, chosen = np.broadcast_to(np.log(alpha), (DRAWS, 3)), np.eye(3)[place]
    values, _ = on.gradients(lambda logs: on.draw(on.LogDirichlet(logs)), logs, dtype=dtype)
    assert values.dtype == dtype
    values = values.astype("float64")
    np.testing.assert_allclose(scipy.special.logsumexp(values, -1), 0, atol=1e-5 if dtype == "float32" else 1e-13)
    q = on.LogDirichlet(on.array(np.log(alpha)))
    np.testing.assert_allclose(q.mean, digamma(alpha) - digamma(total), rtol=1e-9)
    np.testing.assert_allclose(q.variance, polygamma(1, alpha) - polygamma(1, total), rtol=1e-6)
    assert_means(values, np.asarray(q.mean))
    assert_means((values - values.mean(0)) ** 2, np.asarray(q.variance))
    share = alpha / total
    assert_means(np.exp(values), share, (share * (1 - share) / (total + 1)) ** 0.5)
    _, slopes = on.gradients(lambda logs: (on.draw(on.LogDirichlet(logs)) * on.array(chosen, dtype)).sum(-1), logs, dtype=dtype)  # fmt: skip
    assert np.isfinite(slopes).all()
    true = np.diag(alpha * polygamma(1, alpha)) - alpha * polygamma(1, total)
    for row in range(3):
        assert_means(slopes[place == row].astype("float64"), true[row], atol=1e-5)


@pytest.mark.usefixtures("_float64")
@pytest.mark.parametrize("alpha", CONCENTRATIONS[2:])
def test_the_pathwise_gradient_of_expectations(on, alpha):
    """Of E π₀ = α₀ / A and of E π₀² = α₀ (α₀ + 1) / A (A + 1) in log α, in standard errors."""
    alpha, total = np.array(alpha), np.sum(alpha)
    logs, own = np.broadcast_to(np.log(alpha), (DRAWS, 3)), np.array([1.0, 0, 0])
    square = alpha[0] * (alpha[0] + 1) / (total * (total + 1))
    for power, true in (
        (1, alpha[0] / total * (own - alpha / total)),
        (2, square * (own * (1 + alpha / (alpha + 1)) - alpha / total - alpha / (total + 1))),
    ):
        _, slopes = on.gradients(lambda logs: (np.e ** on.draw(on.LogDirichlet(logs)))[:, 0] ** power, logs)  # noqa: B023
        assert_means(slopes, true)


@pytest.mark.usefixtures("_float64")
def test_the_density_of_weights(on):
    """SciPy's, for one and many slots; in float32 it keeps its digits where concentrations are large."""
    for alpha in ([1e-3, 0.2, 5.0], [0.9, 1.0, 1.1, 30.0]):
        value = np.log(np.random.default_rng(0).dirichlet(np.ones(len(alpha)), 5))
        true = [scipy.stats.dirichlet.logpdf(np.exp(row), alpha) for row in value]
        np.testing.assert_allclose(on.LogDirichlet(on.array(np.log(alpha))).log_prob(on.array(value)), true, rtol=1e-9)
    alpha = np.array([2e7, 5e7, 1e8])
    value = np.log(np.random.default_rng(0).dirichlet(alpha, 20))
    double, single = (np.asarray(on.LogDirichlet(on.array(np.log(alpha), dtype)).log_prob(on.array(value, dtype))) for dtype in ("float64", "float32"))  # fmt: skip
    np.testing.assert_allclose(double, [scipy.stats.dirichlet.logpdf(np.exp(row), alpha) for row in value], atol=1e-5)
    assert np.abs(single - double).max() < 1e-2 * np.abs(double - double.mean()).max() + 0.05


@pytest.mark.usefixtures("_float64")
def test_the_kl_of_two_dirichlets(on):
    """The libraries' own, a mean of log ratios, and its gradients by finite differences; the Gamma identity."""
    rng = np.random.default_rng(0)
    a, b = np.exp(rng.normal(0, 1.5, (2, 4, 5)))
    of = lambda a, b: on.divergence(on.LogDirichlet(a), on.LogDirichlet(b))  # noqa: E731
    found, *slopes = on.gradients(of, np.log(a), np.log(b))
    ours = torch.distributions.kl_divergence(*(torch.distributions.Dirichlet(torch.tensor(x)) for x in (a, b)))
    np.testing.assert_allclose(found, ours, rtol=1e-10)
    kg = lambda a, b: (a - b) * digamma(a) - gammaln(a) + gammaln(b)  # noqa: E731
    np.testing.assert_allclose(found, kg(a, b).sum(-1) - kg(a.sum(-1), b.sum(-1)), rtol=1e-9)
    np.testing.assert_allclose(of(*map(on.array, np.log((a, a)))), 0, atol=1e-13)
    q, p = (on.LogDirichlet(on.array(np.log(x[0]))) for x in (a, b))
    value = on.array(np.log(rng.dirichlet(a[0], DRAWS)))
    assert_means(np.asarray(q.log_prob(value) - p.log_prob(value))[:, None], found[0])
    for place, slope in enumerate(slopes):
        along = rng.standard_normal(a.shape)
        ends = [np.asarray(of(*(on.array(np.log(x) + sign * 1e-5 * along * (i == place)) for i, x in enumerate((a, b)))))[..., None] for sign in (1, -1)]  # fmt: skip
        np.testing.assert_allclose((slope * along).sum(-1), (ends[0] - ends[1])[..., 0] / 2e-5, rtol=1e-6)


@pytest.mark.usefixtures("_float64")
def test_the_kl_of_dirichlets_in_float32(on):
    """With counts from 1e-3 to 1e10 on both sides, against 60 digits; two that are equal are at 0."""
    a = np.array([[1e-3, 2.0, 1e10], [1e6, 1e6, 2e6], [1e-2, 1e-2, 1e-3], [3.0, 3.0, 3.0]])
    b = np.array([[1.0, 1.0, 1.0], [1e6, 1.1e6, 2e6], [0.1, 0.1, 0.1], [1e-3, 50.0, 2.0]])
    of = lambda a, b: on.divergence(on.LogDirichlet(a), on.LogDirichlet(b))  # noqa: E731
    found, slope, _ = on.gradients(of, np.log(a), np.log(b), dtype="float32")

    def exact(*counts):
        a, b = counts[:3], counts[3:]
        return sum(map(exact_gamma_kl, a, b)) - exact_gamma_kl(sum(a), sum(b))

    true = exactly(exact, *a.T, *b.T)
    np.testing.assert_allclose(found, true[0], rtol=2e-5)
    np.testing.assert_allclose(slope, true[1:4].T, rtol=1e-3, atol=1e-2)
    np.testing.assert_allclose(of(*(on.array(np.log(b), "float32"),) * 2), 0, atol=1e-4)


@pytest.mark.usefixtures("_float64")
def test_masked_slots_take_no_part(on):
    """Rows of 2 and of 4 slots, whose other parameters are NaN or infinite, are those rows alone."""
    mask = np.array([[True, False, True, False], [True, True, True, True]])
    log_a, log_b = np.log(np.exp(np.random.default_rng(0).normal(0, 1, (2, 2, 4))))
    log_a[0, 1], log_a[0, 3], log_b[0, 1], log_b[0, 3] = np.nan, np.inf, -np.inf, np.nan
    make = lambda log: on.LogDirichlet(log, on.array(mask, "bool"))  # noqa: E731
    alone = [on.LogDirichlet(on.array(log[0, [0, 2]])) for log in (log_a, log_b)]
    kl, of_a, of_b = on.gradients(lambda a, b: on.divergence(make(a), make(b)), log_a, log_b)
    _, *short = on.gradients(lambda a, b: on.divergence(on.LogDirichlet(a), on.LogDirichlet(b)), log_a[0, [0, 2]], log_b[0, [0, 2]])  # fmt: skip
    assert kl[0] == pytest.approx(float(on.divergence(*alone)), rel=1e-12)
    for slope, expected in zip((of_a, of_b), short, strict=True):
        assert (slope[0, [1, 3]] == 0).all()
        np.testing.assert_allclose(slope[0, [0, 2]], expected, rtol=1e-12)
        assert np.isfinite(slope).all()
    values, slope = on.gradients(lambda a: on.draw(make(a), (5,)), log_a)
    assert values.shape == (5, 2, 4)
    assert (values[:, 0, [1, 3]] == in_torch.MASKED).all()
    np.testing.assert_allclose(np.exp(values).sum(-1), 1, rtol=1e-12)
    assert np.isfinite(slope).all()
    assert (slope[0, [1, 3]] == 0).all()
    q = make(on.array(log_a))
    densities, slope = on.gradients(lambda a: make(a).log_prob(on.array(values)), log_a)
    np.testing.assert_allclose(densities[:, 0], alone[0].log_prob(on.array(values[:, 0, [0, 2]])), rtol=1e-12)
    assert np.isfinite(slope).all()
    for name in ("mean", "variance"):
        np.testing.assert_allclose(np.asarray(getattr(q, name))[0, [0, 2]], getattr(alone[0], name), rtol=1e-12)
    assert np.asarray(q.support(on.array(values)) if isinstance(on, Jax) else q.support.check(on.array(values))).all()


@pytest.mark.usefixtures("_float64")
def test_log_weights_in_a_plate(on):
    """A plate expands; a stock mean-field ELBO finds the KL; and what has no slots is refused."""
    q, p = (on.LogDirichlet(on.array(np.log(alpha))) for alpha in ([0.3, 2.0, 1.0], [1.0, 1.0, 1.0]))
    assert on.mean_field(q, p) == pytest.approx(2 * float(on.divergence(q, p)), rel=1e-12)
    assert tuple(q.expand((3, 2)).batch_shape) == (3, 2)
    with pytest.raises(BadInput, match="slots, not shape"):
        on.LogDirichlet(on.array(1.0))
    with pytest.raises(BadInput, match="of 3 and 2 slots"):
        on.divergence(q, on.LogDirichlet(on.array([0.0, 0.0])))


def assert_means(found, true, spread=None, atol=1e-9):
    """The columns' means within 5 standard errors of `true`, by their own spread unless given."""
    error, spread = np.abs(found.mean(0) - true), found.std(0) if spread is None else spread
    assert (error <= 5 * spread / len(found) ** 0.5 + 1e-6 * np.abs(true) + atol).all(), (found.mean(0), true)
