"""Bounded Dirichlet processes on both engines, against closed forms, SciPy, Monte Carlo and the same without padding."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as numpyro_dist
import pyro
import pytest
import scipy.special
import scipy.stats
import torch
from numpyro.infer import TraceMeanField_ELBO as NumPyroMeanField
from pyro.infer import TraceMeanField_ELBO as PyroMeanField

from guidebook.engines.numpyro import dirichlet_process as in_jax
from guidebook.engines.numpyro.dirichlet import LogDirichlet as JaxLogDirichlet
from guidebook.engines.pyro import dirichlet_process as in_torch
from guidebook.engines.pyro.dirichlet import MASKED
from guidebook.engines.pyro.dirichlet import LogDirichlet as TorchLogDirichlet
from guidebook.models.errors import BadInput

SCHEMES = ("stratified", "mixture")
DRAWS = 4000


class Torch:
    """What the tests ask of an engine, in NumPy arrays."""

    room, LogDirichlet = in_torch, TorchLogDirichlet

    def array(self, x, dtype="float64"):
        return torch.tensor(np.asarray(x)).to(getattr(torch, dtype))

    def gradients(self, f, *inputs, dtype="float64"):
        """f of the inputs, and the gradient of its sum in each."""
        inputs = [self.array(x, dtype).requires_grad_() for x in inputs]
        torch.manual_seed(0)
        found = f(*inputs)
        return [found.detach().numpy(), *(g.numpy() for g in torch.autograd.grad(found.sum(), inputs))]

    def draw(self, q, shape=()):
        return q.rsample(torch.Size(shape))

    def divergence(self, q, p):
        return torch.distributions.kl_divergence(q, p)

    def supported(self, q, value):
        return q.support.check(value)

    def mean_field(self, q, p, seed):
        """The stock ELBO's loss, of a model and a guide with one latent in a plate of two rows."""

        def of(fn):
            with pyro.plate("rows", 2):
                pyro.sample("F", fn)

        pyro.set_rng_seed(seed)
        return PyroMeanField().loss(lambda: of(p), lambda: of(q))


class Jax:
    room, LogDirichlet = in_jax, JaxLogDirichlet

    def array(self, x, dtype="float64"):
        return jnp.asarray(x, dtype)

    def gradients(self, f, *inputs, dtype="float64"):
        def both(*inputs):
            found, back = jax.vjp(f, *inputs)
            return found, *back(jnp.ones_like(found))

        return [np.asarray(x) for x in jax.jit(both)(*(self.array(x, dtype) for x in inputs))]

    def draw(self, q, shape=()):
        return q.sample(jax.random.key(0), shape)

    def divergence(self, q, p):
        return numpyro_dist.kl_divergence(q, p)

    def supported(self, q, value):
        return q.support(value)

    def mean_field(self, q, p, seed):
        def of(fn):
            with numpyro.plate("rows", 2):
                numpyro.sample("F", fn)

        return float(NumPyroMeanField().loss(jax.random.key(seed), {}, lambda: of(p), lambda: of(q)))


@pytest.fixture(params=[Torch(), Jax()], ids=["pyro", "numpyro"])
def on(request):
    return request.param


MASK = np.array([[True, True, False, False], [True, True, True, True]])
TOTAL = np.array([1.5, 3.0])
PRIOR = np.array([0.2, -0.1]), np.array([1.1, 0.8])


def parameters():
    """log α (2, 4), μ and σ (2, 4, 2); the first component is the prior's. What `MASK` leaves out is no number."""
    rng = np.random.default_rng(0)
    log_alpha, loc = rng.normal(0.3, 0.6, (2, 4)), rng.normal(0, 0.6, (2, 4, 2))
    scale = np.exp(rng.normal(-0.2, 0.2, (2, 4, 2)))
    loc[:, 0], scale[:, 0] = PRIOR
    log_alpha[~MASK], loc[~MASK], scale[~MASK] = np.nan, np.inf, np.nan
    return log_alpha, loc, scale


def posterior(on, log_alpha, loc, scale, mask=MASK, **options):
    return on.room.BoundedDirichletProcess(log_alpha, loc, scale, on.array(mask, "bool"), **options)


def prior(on, mask=MASK, total=TOTAL, places=1):
    return on.room.BoundedDirichletPrior(on.array(np.log(total)), *map(on.array, PRIOR), on.array(mask, "bool"), places=places)  # fmt: skip


def pair(on, places=2, **options):
    """The posterior and the prior of these parameters."""
    return posterior(on, *map(on.array, parameters()), places=places, **options), prior(on, places=places)


def normal_kl(loc, scale):
    """KL(N_i‖N) (…)."""
    ratio = scale / PRIOR[1]
    return (((loc - PRIOR[0]) / PRIOR[1]) ** 2 / 2 + (ratio**2 - 1) / 2 - np.log(ratio)).sum(-1)


def assert_means(found, true):
    """The columns' means within 5 standard errors of `true`."""
    assert (np.abs(found.mean(0) - true) <= 5 * found.std(0) / len(found) ** 0.5 + 1e-9).all(), (found.mean(0), true)


@pytest.mark.usefixtures("_float64")
def test_one_dirichlet_for_two_stages(on):
    """ρ ~ Dir(α) shared out by Dir(α_i / κ, …): the first two moments, exactly and of draws; and z_ij ~ N_i."""
    places, (log_alpha, loc, scale) = 3, (x[1] for x in parameters())
    q = posterior(on, *map(on.array, (log_alpha, loc, scale)), mask=MASK[1], places=places)
    drawn = np.asarray(on.draw(q, (DRAWS,)))
    assert drawn.shape == (DRAWS, 12, 3)
    assert on.supported(q, on.array(drawn)).all()
    alpha, total = np.exp(log_alpha), np.exp(log_alpha).sum()
    pi, z = (part.reshape(DRAWS, places, 4, -1) for part in (np.exp(drawn[..., 0]), drawn[..., 1:]))
    square = alpha * (alpha + 1) / (total * (total + 1))
    assert_means(pi[:, :, :, 0], np.tile(alpha / total / places, (places, 1)))
    assert_means(pi[:, 0, :, 0] ** 2, square * (1 + places / alpha) / (1 + 1 / alpha) / places**2)
    assert_means(pi[:, 0, :, 0] * pi[:, 1, :, 0], square / (1 + 1 / alpha) / places**2)
    assert_means(z, np.tile(loc, (places, 1, 1)))
    assert_means((z - loc) ** 2, np.tile(scale**2, (places, 1, 1)))


@pytest.mark.usefixtures("_float64")
def test_log_densities_are_those_of_the_samplers(on):
    """SciPy's, of both schemes and of the prior."""
    q, p = pair(on)
    value = np.asarray(on.draw(p, (3,)))
    for fn, scheme in ((q, "stratified"), (pair(on, scheme="mixture")[0], "mixture"), (p, "prior")):
        found = np.asarray(fn.log_prob(on.array(value)))
        for row, real in enumerate(MASK):
            log_alpha, loc, scale = (x[row][real] for x in parameters())
            alpha, count = np.exp(log_alpha), 2 * real.sum()
            for draw, ours in zip(value[:, row], found[:, row], strict=True):
                atoms = draw[np.tile(real, 2)]
                if scheme == "stratified":
                    counts, located = np.tile(alpha / 2, 2), scipy.stats.norm.logpdf(atoms[:, 1:], np.tile(loc, (2, 1)), np.tile(scale, (2, 1))).sum()  # fmt: skip
                elif scheme == "mixture":
                    each = scipy.stats.norm.pdf(atoms[:, None, 1:], loc, scale).prod(-1)
                    counts, located = np.full(count, alpha.sum() / count), np.log(each @ (alpha / alpha.sum())).sum()
                else:
                    counts, located = np.full(count, TOTAL[row] / count), scipy.stats.norm.logpdf(atoms[:, 1:], *PRIOR).sum()  # fmt: skip
                pi = np.exp(atoms[:, 0])
                assert ours == pytest.approx(scipy.stats.dirichlet.logpdf(pi / pi.sum(), counts) + located, rel=1e-9)


@pytest.mark.usefixtures("_float64")
def test_the_exact_kl_of_the_stratified_scheme(on):
    """The mean log ratio of draws, in standard errors; it explodes as a component vanishes, where L_D does not."""
    q, p = pair(on)
    value = on.draw(q, (DRAWS,))
    kl = np.asarray(on.divergence(q, p))
    assert_means(np.asarray(q.log_prob(value) - p.log_prob(value)), kl)
    found = []
    for small in (0.1, 0.01, 0.001):
        q = posterior(on, on.array(np.log([small, 1, 1])), *(on.array(np.tile(x, (3, 1))) for x in PRIOR), mask=np.ones(3, bool))  # fmt: skip
        p = prior(on, np.ones(3, bool), 1.3)
        penalties = on.room.regularisers(q, p)
        found.append((float(on.divergence(q, p)), float(penalties.weights)))
        assert float(penalties.locations) == pytest.approx(0, abs=1e-12)
    np.testing.assert_allclose(found, [[2.5, 0.15], [39, 0.13], [427, 0.13]], atol=0.5)
    np.testing.assert_allclose(np.transpose(found)[1], [0.15, 0.13, 0.13], atol=0.005)


@pytest.mark.usefixtures("_float64")
@pytest.mark.parametrize("scale", [1e-4, 1e-8, 1e-19])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_mixture_of_points_and_of_the_prior_has_a_density_and_a_gradient(on, dtype, scale):
    """Components of these scales, one of which is that of a converted layer, beside one of scale 1."""
    rng = np.random.default_rng(0)
    loc, scales = 3 * rng.standard_normal((6, 32)), np.full((6, 32), scale)
    scales[0] = 1

    def process(log_alpha, loc, scales):
        return on.room.BoundedDirichletProcess(log_alpha, loc, scales, scheme="mixture")

    def atoms(*parameters):
        return on.draw(process(*parameters), (50,))

    found = on.gradients(atoms, np.zeros(6), loc, scales, dtype=dtype)
    assert all(np.isfinite(x).all() for x in found)
    q = process(*(on.array(x, dtype) for x in (np.zeros(6), loc, scales)))
    z, loc, scales = (np.asarray(x, float) for x in (found[0][..., 1:], on.array(loc, dtype), on.array(scales, dtype)))
    each = scipy.stats.norm.logpdf(z[..., None, :], loc, scales).sum(-1) - np.log(6)
    expected = scipy.special.logsumexp(each, axis=-1)
    located = np.asarray(q._locate(on.array(z, dtype)))
    np.testing.assert_allclose(located, expected, rtol=1e-6 if dtype == "float32" else 1e-12)


@pytest.mark.usefixtures("_float64")
def test_the_bound_of_the_mixture_scheme(on):
    """L_D + L_G is at least the mean log ratio; both agree where all components do; nothing for the prior's own."""
    q, p = pair(on, scheme="mixture")
    value = on.draw(q, (DRAWS,))
    ratios, bound = np.asarray(q.log_prob(value) - p.log_prob(value)), np.asarray(on.divergence(q, p))
    assert (ratios.mean(0) + 5 * ratios.std(0) / DRAWS**0.5 < bound).all()
    log_alpha, loc, scale = parameters()
    loc[:], scale[:] = loc[1, 1], scale[1, 1]
    q = posterior(on, *map(on.array, (log_alpha, loc, scale)), places=2, scheme="mixture")
    value = on.draw(q, (DRAWS,))
    assert_means(np.asarray(q.log_prob(value) - p.log_prob(value)), np.asarray(on.divergence(q, p)))


@pytest.mark.usefixtures("_float64")
def test_the_penalties_of_the_paper(on):
    """L_G by its formula, proportional to κ for each component; L_D of A alone."""
    log_alpha, loc, scale = parameters()
    for places in (1, 3):
        q, p = pair(on, places)
        found = on.room.regularisers(q, p)
        for row, real in enumerate(MASK):
            alpha = np.exp(log_alpha[row][real])
            each = normal_kl(loc[row][real], scale[row][real])
            assert each[0] == pytest.approx(0, abs=1e-12)
            assert float(found.locations[row]) == pytest.approx(places * real.sum() * (alpha / alpha.sum()) @ each)
            a, b = (on.LogDirichlet(on.array(np.full(places * real.sum(), np.log(x / (places * real.sum()))))) for x in (alpha.sum(), TOTAL[row]))  # fmt: skip
            assert float(found.weights[row]) == pytest.approx(float(on.divergence(a, b)), rel=1e-10)
    moved = log_alpha.copy()
    moved[1] = np.log(np.exp(log_alpha[1]) + np.exp(log_alpha[1, 0]) * np.array([-0.9, 0.9, 0, 0]))
    other = posterior(on, *map(on.array, (moved, loc, scale)), places=3)
    np.testing.assert_allclose(on.room.regularisers(other, p).weights, found.weights, rtol=1e-12)
    assert float(on.divergence(other, p)[1]) != pytest.approx(float(on.divergence(q, p)[1]), rel=1e-3)


@pytest.mark.usefixtures("_float64")
@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_gradients_of_the_kl(on, scheme):
    """In log α, μ and σ, by finite differences."""
    p, inputs = prior(on, MASK[1], TOTAL[1], 2), [x[1] for x in parameters()]

    def kl(*inputs):
        return on.divergence(posterior(on, *inputs, mask=MASK[1], places=2, scheme=scheme), p)

    for place, slope in enumerate(on.gradients(kl, *inputs)[1:]):
        along = np.random.default_rng(place).standard_normal(slope.shape)
        up, down = (
            float(kl(*(on.array(x + sign * 1e-5 * along if i == place else x) for i, x in enumerate(inputs))))
            for sign in (1, -1)
        )
        assert (slope * along).sum() == pytest.approx((up - down) / 2e-5, rel=1e-6)


@pytest.mark.usefixtures("_float64")
@pytest.mark.parametrize("scheme", SCHEMES)
def test_padding_changes_nothing(on, scheme):
    """KL, density and all gradients of a row of two components among NaN are those of the two alone, and finite."""
    full, alone = parameters(), [x[0, :2] for x in parameters()]
    places = np.array([0, 1, 4, 5])  # of the two, twice, in rows of four
    value = np.asarray(on.draw(prior(on, places=2)))

    def both(mask, total, value):
        def of(*inputs):
            q, p = posterior(on, *inputs, mask=mask, places=2, scheme=scheme), prior(on, mask, total, 2)
            return on.divergence(q, p) + q.log_prob(on.array(value))

        return of

    found, *slopes = on.gradients(both(MASK, TOTAL, value), *full)
    short, *expected = on.gradients(both(MASK[0, :2], TOTAL[0], value[0, places]), *alone)
    assert found[0] == pytest.approx(float(short), rel=1e-12)
    for slope, true in zip(slopes, expected, strict=True):
        np.testing.assert_allclose(slope[0, :2], true, rtol=1e-9, atol=1e-12)
        assert (slope[0, 2:] == 0).all()
        assert np.isfinite(slope).all()
    drawn, *slopes = on.gradients(lambda *inputs: on.draw(posterior(on, *inputs, places=2, scheme=scheme), (5,)), *full)
    assert drawn.shape == (5, 2, 8, 3)
    left_out = ~np.tile(MASK, 2)
    assert (drawn[:, left_out, 0] == MASKED).all()
    assert (drawn[:, left_out, 1:] == 0).all()
    np.testing.assert_allclose(np.exp(drawn[..., 0]).sum(-1), 1, rtol=1e-12)
    assert all(np.isfinite(slope).all() and (slope[~MASK] == 0).all() for slope in slopes)


@pytest.mark.usefixtures("_float64")
@pytest.mark.parametrize("dim", [1, 3])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_the_pathwise_gradient_of_mixed_locations(on, dim, dtype):
    """d E[cᵀz + zᵀQz] in log α, μ and σ of Σ_i (α_i / A) N_i, whose expectation is closed, in standard errors."""
    rng = np.random.default_rng(dim)
    log_alpha, loc, scale = (
        rng.normal(0, 0.5, 3),
        0.7 * rng.standard_normal((3, dim)),
        np.exp(rng.normal(0, 0.2, (3, dim))),
    )
    linear, square = rng.standard_normal(dim), rng.standard_normal((dim, dim))
    square = square + square.T
    share, variance = np.exp(log_alpha) / np.exp(log_alpha).sum(), scale**2
    each = loc @ linear + ((loc @ square) * loc).sum(-1) + variance @ np.diag(square)
    rows = [np.broadcast_to(x, (2 * DRAWS, *x.shape)).astype(dtype) for x in (log_alpha, loc, scale)]

    def of(*inputs):
        inputs = (
            (x.float() if isinstance(on, Torch) else x.astype(dtype) for x in inputs) if dtype == "float32" else inputs
        )
        z = on.draw(posterior(on, *inputs, mask=np.ones(3, bool), scheme="mixture"))[..., 0, 1:]
        return z @ on.array(linear, dtype) + ((z @ on.array(square, dtype)) * z).sum(-1)

    values, *slopes = on.gradients(of, *rows)
    assert_means(values, share @ each)
    assert_means(slopes[0], share * (each - share @ each))
    assert_means(slopes[1], share[:, None] * (linear + 2 * loc @ square))
    assert_means(slopes[2], share[:, None] * 2 * scale * np.diag(square))


@pytest.mark.usefixtures("_float64")
@pytest.mark.parametrize("scheme", SCHEMES)
def test_stock_objectives_use_the_registered_kl(on, scheme):
    """A plate of both libraries; no spread over seeds."""
    q, p = pair(on, scheme=scheme)
    for seed in (0, 1):
        assert on.mean_field(q, p, seed) == pytest.approx(float(on.divergence(q, p).sum()), rel=1e-12)
    assert np.asarray(on.draw(q.expand((3, 2)))).shape == (3, 2, 8, 3)
    assert np.asarray(on.draw(p.expand((3, 2)))).shape == (3, 2, 8, 3)


@pytest.mark.usefixtures("_float64")
def test_what_makes_no_measure_is_refused(on):
    arrays = [on.array(np.zeros(shape)) for shape in ((3,), (3, 2), (3, 2))]
    with pytest.raises(BadInput, match="stratified or mixture, not 'paper'"):
        on.room.BoundedDirichletProcess(*arrays, scheme="paper")
    with pytest.raises(BadInput, match="at least 1 atom for each component, not 0"):
        on.room.BoundedDirichletProcess(*arrays, places=0)
    with pytest.raises(BadInput, match=r"one shape, not \(3, 2\) and \(3, 1\)"):
        on.room.BoundedDirichletProcess(*arrays[:2], arrays[2][:, :1])
    with pytest.raises(BadInput, match="of 1 × and 2 × atoms"):
        on.divergence(pair(on, 1)[0], pair(on, 2)[1])
