"""Distributions on the sphere, on both engines, against quadrature, SciPy, published values, limits and each other."""

from __future__ import annotations

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as numpyro_dist
import numpyro.infer
import pyro
import pytest
import scipy.stats
import torch
from pyro.infer import TraceMeanField_ELBO

from guidebook.engines.numpyro import spherical as in_jax
from guidebook.engines.numpyro import spherical_draw as jax_draw
from guidebook.engines.pyro import spherical as in_torch
from guidebook.engines.pyro import spherical_draw as torch_draw
from guidebook.models.errors import BadInput

FAMILIES = ("VonMisesFisher", "PowerSpherical")
DIMS = (2, 3, 5, 16, 17, 41, 42, 50, 300, 1000)
KAPPAS = np.array([1e-3, 1e-2, 0.1, 1.0, 5.0, 15.0, 19.999, 20.001, 40.0, 100.0, 1e3, 1e4, 1e5])
DRAWS = 20_000


def unit(*shape, seed=0):
    x = np.random.default_rng(seed).standard_normal(shape)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


class Torch:
    """What the tests ask of an engine, in NumPy arrays."""

    rooms = SimpleNamespace(dist=in_torch, draw=torch_draw)

    def array(self, x, dtype="float64"):
        return torch.tensor(np.asarray(x), dtype=getattr(torch, dtype))

    def make(self, family, loc, concentration, dtype="float64"):
        return getattr(in_torch, family)(self.array(loc, dtype), self.array(concentration, dtype))

    def kl(self, q, p):
        return torch.distributions.kl_divergence(q, p).numpy()

    def draws(self, q, shape=(), seed=0):
        torch.manual_seed(seed)
        return q.sample(shape).numpy()

    def gradients(self, f, *inputs):
        """f of the inputs, and the gradient of its sum in each."""
        inputs = [self.array(x).requires_grad_() for x in inputs]
        torch.manual_seed(0)
        found = f(*inputs)
        return [found.detach().numpy(), *(g.numpy() for g in torch.autograd.grad(found.sum(), inputs))]

    def derivatives(self, f, x):
        """Each output of f, which acts on each element of x alone, with its derivative."""
        found = f(x.requires_grad_())
        return [(y.detach().numpy(), torch.autograd.grad(y.sum(), x, retain_graph=True)[0].numpy()) for y in found]

    def sample(self, q, shape=()):
        return q.rsample(shape)

    def divergence(self, q, p):
        return torch.distributions.kl_divergence(q, p)


_sampled = jax.jit(lambda q, key, shape: q.sample(key, shape), static_argnums=2)


class Jax:
    rooms = SimpleNamespace(dist=in_jax, draw=jax_draw)

    def array(self, x, dtype="float64"):
        return jnp.asarray(x, dtype)

    def make(self, family, loc, concentration, dtype="float64"):
        return getattr(in_jax, family)(self.array(loc, dtype), self.array(concentration, dtype))

    def kl(self, q, p):
        return np.asarray(numpyro_dist.kl_divergence(q, p))

    def draws(self, q, shape=(), seed=0):
        return np.asarray(_sampled(q, jax.random.key(seed), shape))

    def gradients(self, f, *inputs):
        def both(*inputs):
            found, back = jax.vjp(f, *inputs)
            return found, *back(jnp.ones_like(found))

        return [np.asarray(x) for x in jax.jit(both)(*map(self.array, inputs))]

    def derivatives(self, f, x):
        return [tuple(map(np.asarray, pair)) for pair in zip(*jax.jvp(f, (x,), (jnp.ones_like(x),)), strict=True)]

    def sample(self, q, shape=()):
        return q.sample(jax.random.key(0), shape)

    def divergence(self, q, p):
        return numpyro_dist.kl_divergence(q, p)


@pytest.fixture(params=[Torch(), Jax()], ids=["pyro", "numpyro"])
def on(request):
    return request.param


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


def reference(family, m, kappa):
    """By the trapezoidal rule in y = log tan²(θ/2), which has tails without edges: spectrally exact.

    s² = sin²(θ/2), p and its cumulative on the grid; L, L', KL to the uniform, A, dA/dκ and dKL/dκ.
    """
    y = np.linspace(-100, 100, 2**15 if m < 30 else 2**17)
    s2 = 1 / (1 + np.exp(-y))
    base = -(m - 1) * np.logaddexp(y / 2, -y / 2)
    statistic = {"VonMisesFisher": -2 * s2, "PowerSpherical": -np.logaddexp(0, y)}[family]
    logits = base + kappa * statistic
    p = np.exp(logits - logits.max())
    log_normaliser = np.log(p.sum()) + logits.max()
    p = p / p.sum()
    slope, cosine = -(p @ statistic), 1 - 2 * s2
    centred = statistic + slope
    log_peak = np.log(np.exp(base - base.max()).sum()) + base.max() - log_normaliser
    return SimpleNamespace(
        s2=s2, p=p, centred=centred, cdf=np.cumsum(p) - p / 2, step=y[1] - y[0],
        log_peak=log_peak, slope=slope, kl=log_peak - kappa * slope, mean_resultant=p @ cosine,
        d_mean_resultant=p @ (cosine * centred), d_kl=kappa * (p @ centred**2),
    )  # fmt: skip


def moments(on, family, m, kappas, dtype):
    """As `reference`, for each of κ, and the derivatives in κ."""
    loc = on.array(np.eye(m)[0], dtype)

    def of(kappa):
        found = getattr(on.rooms.dist, family)(loc, kappa).moments
        return found.mean_resultant, found.kl, found.log_peak

    found = {"slope": np.asarray(on.make(family, np.eye(m)[0], kappas, dtype).moments.slope)}
    for name, (value, derivative) in zip(
        ("mean_resultant", "kl", "log_peak"), on.derivatives(of, on.array(kappas, dtype)), strict=True
    ):
        found |= {name: value, f"d_{name}": derivative}
    return {name: value.astype("float64") for name, value in found.items()}


@pytest.mark.usefixtures("_float64")
@pytest.mark.parametrize("m", DIMS)
def test_moments_and_their_gradients_over_the_grid(on, family, m):
    expected = [reference(family, m, kappa) for kappa in KAPPAS]
    double, single = moments(on, family, m, KAPPAS, "float64"), moments(on, family, m, KAPPAS, "float32")
    for name in double:
        true = np.array([getattr(each, "slope" if name == "d_log_peak" else name) for each in expected])
        np.testing.assert_allclose(double[name], true, rtol=3e-8, atol=2e-11, err_msg=name)
        np.testing.assert_allclose(single[name], true, rtol=6e-6, atol=1e-6, err_msg=name)


@pytest.mark.usefixtures("_float64")
def test_published_and_derived_values(on):
    resultants = {(3, 1): 0.313035, (3, 10): 0.9, (5, 2): 0.361107, (6, 1): 0.163306, (6, 100): 0.975189, (21, 50): 0.818199}  # fmt: skip
    kls = {
        (3, 1): 0.151596, (3, 10): 1.995732, (5, 2): 0.342699, (6, 1): 0.080822, (6, 100): 7.890205, (21, 50): 11.329926,
        (32, 13): 2.173, (32, 50): 12.253, (32, 100): 20.759, (50, 35): 7.743, (50, 80): 19.515, (50, 100): 23.571,
        (50, 150): 31.600, (25, 100): 18.802,
    }  # fmt: skip
    powers = {(2, 4): 0.827695, (3, 10): 1.488804, (6, 10): 1.671993}
    for family, table in (("VonMisesFisher", kls), ("PowerSpherical", powers)):
        for (m, kappa), kl in table.items():
            q = on.make(family, np.eye(m)[0], kappa)
            assert float(on.kl(q, on.rooms.dist.HypersphericalUniform(m))) == pytest.approx(kl, abs=6e-4 if kl == round(kl, 3) else 6e-7)  # fmt: skip
    for (m, kappa), resultant in resultants.items():
        assert float(on.make("VonMisesFisher", np.eye(m)[0], kappa).moments.mean_resultant) == pytest.approx(resultant, abs=6e-7)  # fmt: skip


@pytest.mark.usefixtures("_float64")
@pytest.mark.parametrize("m", [2, 3, 4, 7, 21, 42, 60, 200])
def test_von_mises_fisher_against_scipy(on, m):
    loc, z = unit(m, seed=1), unit(5, m, seed=2)
    for kappa in (0.5, 3.0, 19.0, 21.0, 100.0, 500.0):
        q, scipys = on.make("VonMisesFisher", loc, kappa), scipy.stats.vonmises_fisher(loc, kappa)
        np.testing.assert_allclose(q.log_prob(on.array(z)), scipys.logpdf(z), rtol=1e-8, atol=1e-8)
        np.testing.assert_allclose(q.entropy(), scipys.entropy(), rtol=1e-8, atol=1e-8)


@pytest.mark.usefixtures("_float64")
@pytest.mark.parametrize("m", [2, 3, 50, 1000])
def test_limits_of_small_and_of_large_concentration(on, m):
    uniform = on.rooms.dist.HypersphericalUniform(m)
    small = on.kl(on.make("VonMisesFisher", np.eye(m)[0], 1e-4), uniform)
    assert float(small) == pytest.approx(1e-8 / (2 * m), rel=1e-5)
    kappa = 1e8
    normal = (m - 1) / 2 * (np.log(kappa) - np.log(2 * np.pi) - 1) + in_torch.log_area(m)
    assert float(on.kl(on.make("VonMisesFisher", np.eye(m)[0], kappa), uniform)) == pytest.approx(normal, rel=1e-5)


@pytest.mark.usefixtures("_float64")
@pytest.mark.parametrize("m", [2, 3, 6, 50])
def test_both_engines_give_the_same_numbers(m):
    """float64, 1e-9: densities, entropies, means and KLs, single, batched and broadcast."""
    loc, other, z = unit(4, 1, m), unit(3, m, seed=1), unit(2, 4, 3, m, seed=2)
    kappa, second = np.random.default_rng(3).uniform(0.1, 80, (2, 4, 3))
    found = []
    for on in (Torch(), Jax()):
        uniform = on.rooms.dist.HypersphericalUniform(m)
        q, p = on.make("VonMisesFisher", loc, kappa), on.make("VonMisesFisher", other, second)
        power = on.make("PowerSpherical", loc, kappa)
        values = [on.kl(q, uniform), on.kl(power, uniform), on.kl(q, p), uniform.log_prob(on.array(z))]
        for each in (q, power):
            values += [each.log_prob(on.array(z)), each.entropy(), each.mean]
        found.append([np.asarray(value) for value in values])
    for ours, theirs in zip(*found, strict=True):
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-11)


@pytest.mark.usefixtures("_float64")
def test_kl_of_two_von_mises_fisher(on):
    """0 for equal ones; the formula E_q[log q − log p]; and its gradients against finite differences."""
    loc, other, kappa, second = unit(3, 5), unit(3, 5, seed=1), np.array([0.5, 5.0, 60.0]), np.array([2.0, 4.0, 30.0])
    q, p = on.make("VonMisesFisher", loc, kappa), on.make("VonMisesFisher", other, second)
    np.testing.assert_allclose(on.kl(q, q), 0, atol=1e-11)
    np.testing.assert_allclose(on.kl(q, p), np.asarray(-q.entropy() - p.log_prob(on.array(other))) + second * (1 - np.asarray(q.moments.mean_resultant) * (loc * other).sum(-1)), rtol=1e-9)  # fmt: skip

    def kl(h, kappa, second):
        loc = h / ((h**2).sum(-1) ** 0.5)[..., None]
        family = on.rooms.dist.VonMisesFisher
        return on.divergence(family(loc, kappa), family(on.array(other), second))

    inputs = (2 * loc, kappa, second)
    for place, gradient in enumerate(on.gradients(kl, *inputs)[1:]):
        along = np.random.default_rng(place).standard_normal(gradient.shape)
        up, down = (
            on.gradients(kl, *(x + sign * 1e-5 * along if i == place else x for i, x in enumerate(inputs)))[0].sum()
            for sign in (1, -1)
        )
        assert (gradient * along).sum() == pytest.approx((up - down) / 2e-5, rel=1e-6)


@pytest.mark.usefixtures("_float64")
@pytest.mark.parametrize(("m", "kappa"), [(2, 3.0), (3, 1.0), (10, 1e-3), (50, 100.0), (300, 1e4)])
def test_draws_follow_the_density(on, family, m, kappa):
    """KS of μᵀz against the numeric distribution function, E z = A μ in standard errors, and unit norms."""
    true, loc = reference(family, m, kappa), unit(m, seed=m)
    z = on.draws(on.make(family, loc, kappa), (DRAWS,), seed=1)
    np.testing.assert_allclose(np.linalg.norm(z, axis=-1), 1, atol=1e-14)
    cdf = np.interp(0.25 * ((z - loc) ** 2).sum(-1), true.s2, true.cdf)
    assert scipy.stats.kstest(cdf, "uniform").pvalue > 1e-4
    error = np.abs(z.mean(0) - true.mean_resultant * loc) / (z.std(0) / DRAWS**0.5)
    assert error.max() < 5
    square = (z - z.mean(0)) ** 2
    variance = np.asarray(on.make(family, loc, kappa).variance)
    assert (np.abs(square.mean(0) - variance) < 5 * square.std(0) / DRAWS**0.5).all()
    tangent = z - (z @ loc)[:, None] * loc
    along = unit(m, seed=m + 1)
    spread = (tangent @ (along - along @ loc * loc)) ** 2
    expected = (1 - (z @ loc) ** 2).mean() / (m - 1) * (1 - (along @ loc) ** 2)
    assert abs(spread.mean() - expected) < 5 * spread.std() / DRAWS**0.5


@pytest.mark.usefixtures("_float64")
@pytest.mark.parametrize("m", [2, 3, 1000])
def test_draws_are_on_the_sphere_in_float32(on, family, m):
    """Also with μ at the poles of the reflection, and with concentrations at the ends of the range."""
    poles = np.concatenate((np.eye(m)[:1], -np.eye(m)[:1], np.eye(m)[1:2], unit(300, m)))
    for kappa in (1e-3, 1.0, 1e5):
        q = on.make(family, poles, np.full(len(poles), kappa), "float32")
        z = on.draws(q)
        assert z.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(z.astype("float64"), axis=-1), 1, atol=1e-6)
        assert np.isfinite(np.asarray(q.log_prob(on.array(z, "float32")))).all()
    assert ((z * poles).sum(-1) > 0.95).all()


@pytest.mark.usefixtures("_float64")
def test_stragglers_are_drawn_again_until_accepted(on, monkeypatch):
    monkeypatch.setattr(on.rooms.draw, "PROPOSALS", 1)
    true = reference("VonMisesFisher", 6, 10.0)
    z = on.draws(on.make("VonMisesFisher", np.eye(6)[0], 10.0), (DRAWS + 1,), seed=2)
    assert scipy.stats.kstest(np.interp((1 - z[:, 0]) / 2, true.s2, true.cdf), "uniform").pvalue > 1e-4


@pytest.mark.usefixtures("_float64")
@pytest.mark.parametrize(("m", "kappa"), [(2, 0.5), (3, 40.0), (5, 2.0), (20, 8.0), (50, 1e3)])
def test_the_implicit_gradient_of_each_draw(on, family, m, kappa):
    """d(μᵀz)/dκ = −∂_κ F / p by quadrature, draw by draw; its mean is dA/dκ in standard errors: 0.147389 at (5, 2)."""
    rows, true = 4000, reference(family, m, kappa)
    loc = unit(m, seed=m)

    def cosines(kappas):
        return (on.sample(getattr(on.rooms.dist, family)(on.array(loc), kappas)) * on.array(loc)).sum(-1)

    cosine, gradient = on.gradients(cosines, np.full(rows, kappa))
    assert abs(gradient.mean() - true.d_mean_resultant) < 4.5 * gradient.std() / rows**0.5
    if (m, kappa, family) == (5, 2.0, "VonMisesFisher"):
        assert true.d_mean_resultant == pytest.approx(0.147389, abs=1e-6)
    if isinstance(on, Torch) and family == "PowerSpherical":
        return  # through a Gamma draw: another gradient of the same mean
    s2 = (1 - cosine) / 2
    inside = (true.p > 1e-12 * true.p.max()) & (true.s2 > 1e-7) & (true.s2 < 1 - 1e-7)
    area = (np.cumsum(true.p * true.centred) - 0.5 * true.p * true.centred)[inside]  # ∂_κ of F, over s² from 0
    grid = true.s2[inside]
    slope = np.interp(s2, grid, 2 * area / true.p[inside] * true.step * grid * (1 - grid))
    np.testing.assert_allclose(gradient, slope, rtol=1e-3, atol=1e-4 * np.abs(slope).mean())


@pytest.mark.usefixtures("_float64")
@pytest.mark.parametrize("m", [2, 20])
def test_the_gradient_in_the_mean_direction(on, family, m):
    """d E[cᵀz] / dh = A (c − μᵀc μ) / |h| for μ = h / |h|, in standard errors, on both sides of the reflection."""
    rows, kappa, c, h = 4000, 3.0, unit(m, seed=5), 2 * unit(m, seed=6)

    def projected(hs):
        loc = hs / ((hs**2).sum(-1) ** 0.5)[..., None]
        return on.sample(getattr(on.rooms.dist, family)(loc, on.array(np.full(2 * rows, kappa)))) @ on.array(c)

    _, gradient = on.gradients(projected, np.repeat([h, -h], rows, 0))
    expected = reference(family, m, kappa).mean_resultant * (c - (h @ c) * h / 4) / 2
    for side in np.split(gradient, 2):
        assert (np.abs(side.mean(0) - expected) < 5 * side.std(0) / rows**0.5 + 1e-12).all()


@pytest.mark.usefixtures("_float64")
def test_densities_turn_with_the_sphere(on, family):
    turn = np.linalg.qr(np.random.default_rng(0).standard_normal((7, 7)))[0]
    loc, z = unit(3, 7), unit(3, 7, seed=1)
    before, after = (on.make(family, x, 4.0).log_prob(on.array(y)) for x, y in ((loc, z), (loc @ turn, z @ turn)))
    np.testing.assert_allclose(before, after, atol=1e-12)


@pytest.mark.usefixtures("_float64")
def test_the_uniform_distribution(on):
    uniform = on.rooms.dist.HypersphericalUniform(4).expand((3,))
    z = on.draws(uniform, (DRAWS // 3,)).astype("float64")
    np.testing.assert_allclose(np.linalg.norm(z, axis=-1), 1, atol=1e-6)
    assert (np.abs(z.mean((0, 1))) < 5 / (4 * DRAWS) ** 0.5).all()
    np.testing.assert_allclose(np.asarray(uniform.log_prob(on.array(unit(3, 4)))), -np.log(2 * np.pi**2))
    assert float(on.rooms.dist.HypersphericalUniform(2).entropy()) == pytest.approx(np.log(2 * np.pi))


@pytest.mark.usefixtures("_float64")
def test_what_is_not_on_a_sphere_is_refused(on, family):
    with pytest.raises(BadInput, match="at least 2 dimensions, not 1"):
        on.make(family, np.ones((3, 1)), 1.0)
    with pytest.raises(BadInput, match="spheres in 4 and 3 dimensions"):
        on.kl(on.make(family, unit(4), 1.0), on.rooms.dist.HypersphericalUniform(3))
    with pytest.raises(ValueError, match="loc"):
        getattr(on.rooms.dist, family)(on.array([3.0, 4.0]), on.array(1.0), validate_args=True)


def test_in_a_plate_of_pyro(family):
    """A plate expands, `to_event` makes one event of a row of them, and stock ELBOs find the KL."""
    q = Torch().make(family, unit(5, 3, 4), np.full((5, 3), 2.0))

    def model():
        with pyro.plate("rows", 5):
            pyro.sample("z", in_torch.HypersphericalUniform(4, dtype=torch.float64).expand((5, 3)).to_event(1))

    def guide():
        with pyro.plate("rows", 5):
            assert pyro.sample("z", q.to_event(1)).shape == (5, 3, 4)

    def shared():
        with pyro.plate("rows", 5):
            assert pyro.sample("z", Torch().make(family, unit(4), 2.0)).shape == (5, 4)

    shared()
    assert TraceMeanField_ELBO().loss(model, guide) == pytest.approx(q.moments.kl.sum().item(), rel=1e-9)


@pytest.mark.usefixtures("_float64")
def test_in_a_plate_of_numpyro(family):
    """A plate expands, a distribution is a pytree, and stock ELBOs find the KL."""
    q = Jax().make(family, unit(5, 4), np.full(5, 2.0))

    def model():
        with numpyro.plate("rows", 5):
            numpyro.sample("z", in_jax.HypersphericalUniform(4))

    def guide():
        with numpyro.plate("rows", 5):
            assert numpyro.sample("z", q).shape == (5, 4)

    loss = numpyro.infer.TraceMeanField_ELBO().loss(jax.random.key(0), {}, model, guide)
    assert float(loss) == pytest.approx(float(q.moments.kl.sum()), rel=1e-9)
    again = jax.jit(lambda q: q.to_event(1).log_prob(q.loc))(q)
    np.testing.assert_allclose(again, q.log_prob(q.loc).sum(), rtol=1e-9)
    mapped = jax.vmap(lambda q, key: q.sample(key))(q, jax.random.split(jax.random.key(0), 5))
    np.testing.assert_allclose(np.linalg.norm(mapped, axis=-1), 1, atol=1e-12)
