"""Likelihoods of vectors on both engines: density against SciPy, draws, finite gradients, starts, refusals."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from scipy.special import expit, log_softmax, logsumexp, softplus

from guidebook.guides import PAIRS
from guidebook.inference import fit
from guidebook.models.errors import BadInput
from guidebook.models.likelihoods import (
    CORRELATION,
    FLOOR,
    BernoulliLikelihood,
    GaussianLikelihood,
    GaussianMixtureLikelihood,
    StrokesLikelihood,
)

pytestmark = pytest.mark.usefixtures("_float64")
D, K, B = 3, 4, 5
SPECS = [
    kind(scale=scale, **extra)
    for scale in ("exp", "softplus")
    for kind, extra in (
        (GaussianLikelihood, {}),
        (GaussianMixtureLikelihood, {"components": K}),
        (StrokesLikelihood, {"components": K}),
    )
]
EVERY = pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"{spec.kind}-{spec.scale}")


def law(both, engine, spec, features):
    return both.Law(engine, both.realised(engine, spec), features)


def features_of(spec, rows=B, scale=1.0):
    return np.random.default_rng(0).normal(scale=scale, size=(rows, spec.features(D)))


def points(spec, *shape):
    x = np.random.default_rng(1).normal(size=(*shape, D))
    if spec.kind == "strokes":
        x[..., 0] = x[..., 0] > 0
    return x


def scale_of(spec, f):
    return np.exp(f / 2) if spec.scale == "exp" else softplus(f) + FLOOR


def parts(spec, f):
    """Of one row of features: log π (K,), the components as SciPy's, and the pen's probability."""
    if spec.kind == "gaussian":
        return np.zeros(1), [stats.multivariate_normal(f[:D], np.diag(scale_of(spec, f[D:]) ** 2))], None
    if spec.kind == "gaussian_mixture":
        loc, scale = f[K:].reshape(2, K, D)
        covariances = [np.diag(s**2) for s in scale_of(spec, scale)]
        return log_softmax(f[:K]), list(map(stats.multivariate_normal, loc, covariances)), None
    loc, scale = f[1 + K : 1 + 5 * K].reshape(2, K, 2)
    both_scales, rho = scale_of(spec, scale), CORRELATION * np.tanh(f[1 + 5 * K :])
    covariances = [np.outer(s, s) * [[1, r], [r, 1]] for s, r in zip(both_scales, rho, strict=True)]
    return log_softmax(f[1 : 1 + K]), list(map(stats.multivariate_normal, loc, covariances)), expit(f[0])


def log_density(spec, f, x):
    shares, normals, pen = parts(spec, f)
    moves = x if pen is None else x[1:]
    found = logsumexp([share + normal.logpdf(moves) for share, normal in zip(shares, normals, strict=True)])
    return found if pen is None else found + stats.bernoulli(pen).logpmf(x[0])


@EVERY
def test_the_density_is_scipys(both, engine, spec):
    """For x of the law's rows, and for x without the particles that the features have."""
    f, x = features_of(spec, 2 * B).reshape(2, B, -1), points(spec, B)
    exact = [[log_density(spec, f[s, b], x[b]) for b in range(B)] for s in range(2)]
    fn = law(both, engine, spec, f)
    np.testing.assert_allclose(fn.log_prob(x), exact, rtol=1e-9)
    assert fn.fn.event_shape == (D,)
    fn.fn = fn.fn.expand((3, 2, B))
    np.testing.assert_allclose(fn.log_prob(x), np.broadcast_to(exact, (3, 2, B)), rtol=1e-9)


@EVERY
def test_draws_have_the_moments_of_the_mixture(both, engine, spec):
    count = 40_000
    f = features_of(spec)
    draws = law(both, engine, spec, f).draws(count)
    assert draws.shape == (count, B, D)
    for row in range(B):
        shares, normals, pen = parts(spec, f[row])
        drawn = draws[:, row] if pen is None else draws[:, row, 1:]
        mean = sum(np.exp(share) * normal.mean for share, normal in zip(shares, normals, strict=True))
        second = sum(
            np.exp(share) * (normal.cov + np.outer(normal.mean, normal.mean))
            for share, normal in zip(shares, normals, strict=True)
        )
        products = drawn[:, :, None] * drawn[:, None, :]
        assert (np.abs(drawn.mean(0) - mean) < 5 * drawn.std(0) / np.sqrt(count)).all()
        assert (np.abs(products.mean(0) - second) < 5 * products.std(0) / np.sqrt(count)).all()
        if pen is not None:
            assert set(np.unique(draws[:, row, 0])) == {0.0, 1.0}
            assert abs(draws[:, row, 0].mean() - pen) < 5 * np.sqrt(pen * (1 - pen) / count)


@EVERY
@pytest.mark.parametrize("size", [1.0, 20.0, 60.0])
def test_gradients_are_finite_at_extreme_features(both, engine, spec, size):
    f = size * np.sign(features_of(spec))
    x = points(spec, B)
    if engine == "pyro":
        import torch

        at = torch.tensor(f, requires_grad=True)
        both.realised(engine, spec)(at).log_prob(torch.as_tensor(x)).sum().backward()
        gradient = at.grad.numpy()
    else:
        import jax

        module = both.realised(engine, spec)
        gradient = np.asarray(jax.grad(lambda f: module(f).log_prob(x).sum())(jax.numpy.asarray(f)))
    assert np.isfinite(gradient).all()
    assert np.isfinite(law(both, engine, spec, f).log_prob(x)).all()


@EVERY
def test_the_bias_gives_the_mean_and_unit_variance(spec):
    mean = np.array([0.3, -1.2, 2.0])
    shares, normals, pen = parts(spec, spec.bias(mean))
    np.testing.assert_allclose(np.exp(shares), 1 / len(shares))
    for normal in normals:
        np.testing.assert_allclose(normal.mean, mean if pen is None else mean[1:])
        np.testing.assert_allclose(normal.cov, np.eye(len(normal.mean)), atol=1e-12)
    assert pen is None or pen == pytest.approx(0.3)
    assert len(spec.bias(mean)) == spec.features(D)


def test_strokes_are_a_pen_and_two_moves():
    spec = StrokesLikelihood()
    spec.refuse(points(spec, 9))
    for x, said in ((np.zeros((4, 5)), "D = 5"), (np.full((4, 3), 0.5), "goes from 0.5 to 0.5")):
        with pytest.raises(BadInput, match=f"three columns, pen.*{said}.*gaussian_mixture"):
            spec.refuse(x)
    GaussianMixtureLikelihood().refuse(np.zeros((4, 5)))
    with pytest.raises(BadInput, match="0 and 1"):
        BernoulliLikelihood().refuse(np.full((4, 3), 0.5))


@pytest.mark.parametrize("pair", ["vae", "vrnn"])
def test_recipes_refuse_what_is_no_drawing(pair, tmp_path):
    x = np.zeros((20, 5), np.float32)
    arrays = {"x": x} if pair == "vae" else {"x": x, "x_lengths": np.full(4, 5)}
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(BadInput, match=r"three columns.*D = 5"):
        fit(PAIRS[pair], "model.likelihood={kind='strokes'}", data=tmp_path / "x.npz", out=tmp_path / "r")


@EVERY
def test_a_vae_has_the_same_terms_on_both_engines(both, spec):
    pair, found = PAIRS["vae"], []
    model = pair.model_spec.model_validate(
        {"prior": {"kind": "standard_normal", "dim": 2}, "decoder": {"hidden": (4,)}, "likelihood": spec.model_dump()}
    )
    guide = pair.guide_spec.model_validate({"encoder": {"hidden": ()}, "features": 3})
    batch = both.rows({"x": points(spec, B)}, filler=1)
    noise = {"z": np.random.default_rng(1).standard_normal((B + 1, 2))}
    for engine in both.engines:
        program = both.program(
            engine, both.replaying(engine, pair, noise), pair.realisable(model, guide, D), data_size=9
        )
        state = program.init(batch)
        found.append((program.terms(state, batch, seed=0).elbo(), *both.gradients(program, state, batch)))
    (elbo, gradients, _), (other_elbo, others, _) = found
    np.testing.assert_allclose(elbo, other_elbo, rtol=1e-8)
    for name, gradient in gradients.items():
        np.testing.assert_allclose(gradient, others[name], rtol=1e-8, atol=1e-12, err_msg=name)
        assert np.abs(gradient).max() > 0, name
