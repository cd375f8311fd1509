"""Denoising attention on both engines against mixtures of normals taken term by term, Monte Carlo and plain attention."""

from __future__ import annotations

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from scipy.special import softmax
from scipy.stats import multivariate_normal
from torch.nn import functional as F

from guidebook.engines.numpyro import denoising as in_jax
from guidebook.engines.pyro import denoising as in_torch
from guidebook.models.errors import BadInput

pytestmark = pytest.mark.usefixtures("_float64")
B, Q, N, P, HEADS = 2, 4, 6, 6, 2
ROOT = (P / HEADS) ** 0.5


class Torch:
    """What the tests ask of an engine, in NumPy arrays."""

    room = in_torch

    def array(self, x, dtype="float64"):
        if isinstance(x, torch.Tensor):
            return x
        found = torch.tensor(np.asarray(x))
        return found if found.dtype == torch.bool else found.to(getattr(torch, dtype))

    def numpy(self, x):
        return x.detach().double().numpy()

    def gradients(self, f, inputs):
        """f of the inputs, and the gradient of the sum of its squares in each."""
        inputs = [self.array(x).requires_grad_() for x in inputs]
        found = f(*inputs)
        return [self.numpy(found), *map(self.numpy, torch.autograd.grad(found.square().sum(), inputs))]


class Jax:
    room = in_jax

    def array(self, x, dtype="float64"):
        if isinstance(x, jax.Array):
            return x
        return jnp.asarray(x, None if np.asarray(x).dtype == bool else dtype)

    def numpy(self, x):
        return np.asarray(x, float)

    def gradients(self, f, inputs):
        found, back = jax.vjp(f, *map(self.array, inputs))
        return [np.asarray(found), *map(np.asarray, back(2 * found))]


@pytest.fixture(params=["pyro", "pyro_feature", "numpyro"])
def on(request, monkeypatch):
    """On PyTorch both ways of its fused call to take a bias that has a gradient."""
    if request.param == "pyro_feature":
        monkeypatch.setattr(in_torch, "_FEATURE_FROM", 1)
    return Jax() if request.param == "numpyro" else Torch()


def arrays(seed=0, components=N, heads=HEADS, width=P):
    rng = np.random.default_rng(seed)
    normal = rng.standard_normal
    return SimpleNamespace(
        y=normal((B, Q, 5)),
        z=1.5 * normal((B, components, width)),
        log_weight=normal((B, components)),
        variance=rng.uniform(0.1, 4, (B, components, width)),
        scalar=rng.uniform(0.1, 4, (B, components, 1)),
        weights=[0.7 * normal(s) for s in ((width, 5), (width, width), (width, width), (width,), (width,))],
        heads=heads,
    )


def projections(on, x):
    return on.room.Projections(*map(on.array, x.weights))


def training(on, x, visible=None, relative=False, mask=None, z=None, log_weight=None):
    w = projections(on, x)
    z, log_weight = (
        on.array(default if given is None else given) for given, default in ((z, x.z), (log_weight, x.log_weight))
    )
    keys = on.room.sampled(on.room.Atoms(z, log_weight, mask), w, x.heads, relative)
    return on.room.attend(on.array(x.y), keys, w, visible)


def evaluation(on, x, variance, rule="exact", visible=None, mask=None, relative=False):
    w = projections(on, x)
    mask = None if mask is None else on.array(mask)
    components = on.room.Components(on.array(x.log_weight), on.array(x.z), on.array(variance), mask)
    return on.numpy(
        on.room.attend(on.array(x.y), on.room.mean_measure(components, w, x.heads, rule, relative), w, visible)
    )


def lifted(x):
    """Queries (B, H, Q, P) in the space of the atoms, and W_V, b_V of each head, one head at a time."""
    query, key, value, query_bias, value_bias = x.weights
    d = len(key) // x.heads
    each = [slice(h * d, (h + 1) * d) for h in range(x.heads)]
    u = np.stack([(x.y @ query[s].T + query_bias[s]) @ key[s] for s in each], 1)
    return u, [(value[s], value_bias[s]) for s in each]


def by_hand(x, posterior_mean):
    """The output from E[v | u], given as a function of a batch's row and one query u."""
    u, values = lifted(x)
    heads = [
        [[w @ posterior_mean(b, u[b, h, q]) + c for q in range(Q)] for b in range(B)] for h, (w, c) in enumerate(values)
    ]
    return np.concatenate(heads, -1)


def of_atoms(x, b, u):
    """E[v | u] under atoms: their weights times N(u; z, r I)."""
    log = [multivariate_normal.logpdf(u, z, ROOT * np.eye(P)) for z in x.z[b]]
    return softmax(x.log_weight[b] + log) @ x.z[b]


def of_mixture(x, variance, b, u):
    """E[v | u] under a mixture of normals: the evidence of each times its conditional mean."""
    covariances = [np.diag(np.broadcast_to(v, P)) for v in variance[b]]
    log = [multivariate_normal.logpdf(u, m, c + ROOT * np.eye(P)) for m, c in zip(x.z[b], covariances, strict=True)]
    means = [m + c @ np.linalg.solve(c + ROOT * np.eye(P), u - m) for m, c in zip(x.z[b], covariances, strict=True)]
    return softmax(x.log_weight[b] + log) @ np.array(means)


def test_sampled_is_the_posterior_mean_under_atoms(on):
    x = arrays()
    np.testing.assert_allclose(on.numpy(training(on, x)), by_hand(x, lambda *at: of_atoms(x, *at)), atol=1e-12)


@pytest.mark.parametrize("kind", ["variance", "scalar"])
def test_the_mean_measure_is_the_posterior_mean_under_a_mixture(on, kind):
    x = arrays()
    variance = getattr(x, kind)
    expected = by_hand(x, lambda *at: of_mixture(x, variance, *at))
    np.testing.assert_allclose(evaluation(on, x, variance), expected, atol=1e-12)


def test_one_variance_for_each_component_is_the_general_case_with_equal_variances(on):
    x = arrays()
    for rule in ("exact", "reference"):
        wide = np.broadcast_to(x.scalar, x.z.shape)
        np.testing.assert_allclose(evaluation(on, x, x.scalar, rule), evaluation(on, x, wide, rule), atol=1e-12)


def test_the_mean_measure_is_what_monte_carlo_finds(on):
    """E[v | u] by importance sampling from the mixture; the error of a ratio from its terms."""
    x = arrays()
    found, rng, draws = evaluation(on, x, x.variance), np.random.default_rng(1), 200_000
    u, values = lifted(x)
    chosen = rng.choice(N, draws, p=softmax(x.log_weight[1]))
    v = x.z[1, chosen] + np.sqrt(x.variance[1, chosen]) * rng.standard_normal((draws, P))
    weight = softmax(-((u[1, 1, 2] - v) ** 2).sum(-1) / (2 * ROOT))
    (w, c), out = values[1], found[1, 2, P // HEADS :]
    terms = weight[:, None] * (v @ w.T + c - out)
    assert 1 / (weight**2).sum() > 500
    assert (np.abs(terms.sum(0)) < 4 * np.sqrt((terms**2).sum(0))).all()


def test_weights_that_undo_the_norms_are_plain_attention(on):
    x = arrays()
    query, key, value, query_bias, value_bias = map(torch.as_tensor, x.weights)

    def plain(y, z):
        q, k, v = (
            t.unflatten(-1, (HEADS, -1)).mT.movedim(-1, -2).transpose(1, 2)
            for t in (F.linear(y, query, query_bias), F.linear(z, key), F.linear(z, value, value_bias))
        )
        weights = torch.softmax(q @ k.mT / ROOT, -1)
        return (weights @ v).transpose(1, 2).flatten(-2)

    norm = (x.z**2).sum(-1) / (2 * ROOT)
    found, gradient = on.gradients(lambda z: training(on, x, z=z, log_weight=norm - 400), [x.z])
    expected, _ = Torch().gradients(lambda z: plain(torch.as_tensor(x.y), z), [x.z])
    np.testing.assert_allclose(found, expected, atol=1e-12)
    relative = on.gradients(lambda z: training(on, x, relative=True, z=z, log_weight=np.zeros((B, N))), [x.z])
    _, through_z = Torch().gradients(lambda z: plain(torch.as_tensor(x.y), z), [x.z])
    for got, wanted in zip(relative, (expected, through_z), strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-11)
    assert np.abs(gradient - through_z).max() > 1e-2  # the norm has a gradient of its own


def test_gradients_reach_the_bias(on):
    x = arrays()
    _, *gradients = on.gradients(lambda z, w: training(on, x, z=z, log_weight=w), [x.z, x.log_weight])

    def objective(z, log_weight):
        moved = SimpleNamespace(**{**vars(x), "z": z, "log_weight": log_weight})
        return (by_hand(moved, lambda *at: of_atoms(moved, *at)) ** 2).sum()

    for i, gradient in enumerate(gradients):
        for place in [(0, 0), (1, 3)]:
            ends = []
            for step in (1e-5, -1e-5):
                inputs = [x.z.copy(), x.log_weight.copy()]
                inputs[i][place] += step
                ends.append(objective(*inputs))
            np.testing.assert_allclose(gradient[place].sum(), (ends[0] - ends[1]) / 2e-5, rtol=1e-6, atol=1e-7)


def test_without_variance_both_forms_agree(on):
    x = arrays()
    for variance in (np.zeros_like(x.variance), np.zeros_like(x.scalar)):
        np.testing.assert_allclose(evaluation(on, x, variance), on.numpy(training(on, x)), atol=1e-12)


@pytest.mark.parametrize("kind", ["variance", "scalar"])
def test_the_rules_differ_where_variances_differ_alone(on, kind):
    x = arrays()
    variance = getattr(x, kind)
    equal = np.broadcast_to(variance[:, :1], variance.shape)
    np.testing.assert_allclose(evaluation(on, x, equal), evaluation(on, x, equal, "reference"), atol=1e-12)
    assert np.abs(evaluation(on, x, variance) - evaluation(on, x, variance, "reference")).max() > 0.05


def test_draws_average_to_the_mean_measure_where_counts_are_large_alone(on):
    """Stratified draws, weights Dirichlet(α); a ratio of means over so many samples is biased by less than 0.01."""
    x = arrays(components=3)
    x.variance = 0.05 * x.variance
    alpha, samples, draws = softmax(x.log_weight, -1), 500, 60
    rng = np.random.default_rng(2)
    expected = evaluation(on, x, x.variance)

    def apart(total):
        """The difference of the draws' mean from the mean measure's output, and its standard error."""
        gamma = rng.gamma(np.repeat(total * alpha, samples, -1) / samples, size=(draws, B, 3 * samples))
        spread = np.repeat(np.sqrt(x.variance), samples, 1)
        z = np.repeat(x.z, samples, 1) + spread * rng.standard_normal((draws, B, 3 * samples, P))
        with np.errstate(divide="ignore"):
            found = on.numpy(training(on, x, z=z, log_weight=np.log(gamma)))
        return np.abs(found.mean(0) - expected), found.std(0) / draws**0.5

    difference, error = apart(2e5)
    assert (difference < 4 * error + 0.01).all()
    difference, error = apart(0.5)
    assert (difference > 6 * error + 0.01).any()


def reordered(x, order):
    moved = {name: getattr(x, name)[:, order] for name in ("z", "log_weight", "variance", "scalar")}
    return SimpleNamespace(**{**vars(x), **moved})


def test_order_is_the_queries_own(on):
    x, order = arrays(), np.random.default_rng(3).permutation(N)
    other = reordered(x, order)
    np.testing.assert_allclose(on.numpy(training(on, other)), on.numpy(training(on, x)), atol=1e-12)
    np.testing.assert_allclose(evaluation(on, other, other.variance), evaluation(on, x, x.variance), atol=1e-12)
    turned = SimpleNamespace(**{**vars(x), "y": x.y[:, ::-1].copy()})
    np.testing.assert_allclose(evaluation(on, turned, x.scalar), evaluation(on, x, x.scalar)[:, ::-1], atol=1e-12)


def test_halves_of_a_component_are_the_component(on):
    x = arrays()
    both = reordered(x, [*range(N), 2])
    both.log_weight[:, [2, N]] -= np.log(2)
    np.testing.assert_allclose(on.numpy(training(on, both)), on.numpy(training(on, x)), atol=1e-12)
    for kind in ("variance", "scalar"):
        expected = evaluation(on, x, getattr(x, kind))
        np.testing.assert_allclose(evaluation(on, both, getattr(both, kind)), expected, atol=1e-12)


@pytest.mark.parametrize("filler", [np.nan, np.inf])
@pytest.mark.parametrize("form", ["sampled", "variance", "scalar"])
def test_what_the_mask_hides_reaches_nothing(on, form, filler):
    """Output and gradients are those without the hidden slots, whatever they hold; and 0 in the hidden slots."""
    x, kept = arrays(), 3
    w = projections(on, x)

    def f(mask):
        def of(y, z, log_weight, *variance):
            if form == "sampled":
                keys = on.room.sampled(on.room.Atoms(z, log_weight, mask), w, HEADS)
            else:
                keys = on.room.mean_measure(on.room.Components(log_weight, z, *variance, mask), w, HEADS)
            return on.room.attend(y, keys, w)

        return of

    inputs = [x.y, x.z.copy(), x.log_weight.copy()]
    if form != "sampled":
        inputs.append(getattr(x, form).copy())
    expected = on.gradients(f(None), [inputs[0], *(each[:, :kept] for each in inputs[1:])])
    for each in inputs[1:]:
        each[:, kept:] = filler
    found = on.gradients(f(on.array(np.broadcast_to(np.arange(N) < kept, (B, N)))), inputs)
    for i, (got, wanted) in enumerate(zip(found, expected, strict=True)):
        np.testing.assert_allclose(got if i < 2 else got[:, :kept], wanted, atol=1e-11)
        assert i < 2 or not got[:, kept:].any()


@pytest.mark.parametrize("kind", ["variance", "scalar"])
def test_the_prior_alone(on, kind):
    x = arrays()
    variance, mask = getattr(x, kind).copy(), np.zeros((B, N), bool)
    mask[:, 0] = True
    x.z[:, 1:], x.log_weight[:, 1:], variance[:, 1:] = np.nan, np.inf, np.nan

    def mean(b, u):
        gate = variance[b, 0] / (ROOT + variance[b, 0])
        return gate * u + (1 - gate) * x.z[b, 0]

    np.testing.assert_allclose(evaluation(on, x, variance, mask=mask), by_hand(x, mean), atol=1e-12)


def test_an_atom_without_weight_is_no_atom(on):
    x = arrays()
    without = reordered(x, slice(0, N - 1))
    x.log_weight[:, -1] = -np.inf
    found = on.gradients(lambda z, w: training(on, x, z=z, log_weight=w), [x.z, x.log_weight])
    np.testing.assert_allclose(found[0], on.numpy(training(on, without)), atol=1e-12)
    assert all(np.isfinite(each).all() for each in found)


@pytest.mark.parametrize("samples", [1, 2])
def test_a_causal_query_sees_the_prior_and_no_later_place(on, samples):
    x = arrays(components=samples * (Q + 1))
    visible = on.room.causal(on.array(x.y), samples)
    found = on.gradients(lambda z, w: training(on, x, visible, z=z, log_weight=w), [x.z, x.log_weight])[0]
    general = evaluation(on, x, x.variance, visible=visible)
    scalar = evaluation(on, x, x.scalar, visible=visible)
    for t in (0, 2):
        seen = reordered(x, [k for k in range(samples * (Q + 1)) if k % (Q + 1) <= t + 1])
        np.testing.assert_allclose(found[:, t], on.numpy(training(on, seen))[:, t], atol=1e-12)
        np.testing.assert_allclose(general[:, t], evaluation(on, seen, seen.variance)[:, t], atol=1e-12)
        np.testing.assert_allclose(scalar[:, t], evaluation(on, seen, seen.scalar)[:, t], atol=1e-12)


def test_keys_serve_queries_one_by_one_and_batches_of_draws(on):
    """As in decoding; and with queries and atoms that have a leading axis of particles, or only one of them."""
    x = arrays()
    w = projections(on, x)
    keys = on.room.sampled(on.room.Atoms(on.array(x.z), on.array(x.log_weight)), w, HEADS)
    whole = on.numpy(training(on, x))
    for t in range(Q):
        np.testing.assert_allclose(on.numpy(on.room.attend(on.array(x.y[:, t : t + 1]), keys, w)), whole[:, t : t + 1])
    found = on.numpy(on.room.attend(on.array(np.stack([x.y, x.y[:, ::-1]])), keys, w))
    np.testing.assert_allclose(found, [whole, whole[:, ::-1]], atol=1e-12)
    other = arrays(6)
    both = {"z": np.stack([x.z, other.z]), "log_weight": np.stack([x.log_weight, other.log_weight])}
    mask = on.array(np.broadcast_to(np.arange(N) < 4, (B, N)))
    found = on.numpy(training(on, x, mask=mask, **both))
    for each, z, log_weight in zip(found, *both.values(), strict=True):
        expected = training(on, x, z=z[:, :4], log_weight=log_weight[:, :4])
        np.testing.assert_allclose(each, on.numpy(expected), atol=1e-12)


def test_both_engines_give_the_same_outputs_and_gradients():
    x = arrays(5)

    def forms(on):
        w = projections(on, x)

        def of(y, z, log_weight, variance):
            mean = on.room.Components(log_weight, z, variance)
            keys = [
                on.room.sampled(on.room.Atoms(z, log_weight), w, HEADS),
                on.room.mean_measure(mean, w, HEADS),
                on.room.mean_measure(mean._replace(variance=variance[..., :1]), w, HEADS, "reference"),
            ]
            return sum(scale * on.room.attend(y, each, w) for scale, each in enumerate(keys, 1))

        return on.gradients(of, [x.y, x.z, x.log_weight, x.variance])

    for pyro, numpyro in zip(forms(Torch()), forms(Jax()), strict=True):
        np.testing.assert_allclose(pyro, numpyro, atol=1e-10)


@pytest.mark.parametrize("relative", [False, True])
def test_half_precision_keeps_what_large_norms_leave(on, relative):
    """|z|² / (2 r) is 50, log weights undo it but for a few nats: bfloat16 must not round the two apart."""
    x = arrays()
    x.z *= np.sqrt(50 * 2 * ROOT / (x.z**2).sum(-1, keepdims=True))
    x.weights = [0.2 * w for w in x.weights]
    beta = np.random.default_rng(4).standard_normal((B, N)) + 1000
    w = on.room.Projections(*(on.array(each, "bfloat16") for each in x.weights))
    x.weights = [on.numpy(each) for each in w]
    x.log_weight = beta + 50
    expected = by_hand(x, lambda *at: of_atoms(x, *at))
    given = on.array(beta if relative else x.log_weight, "float32")
    given = given.requires_grad_() if on.room is in_torch else given
    keys = on.room.sampled(on.room.Atoms(on.array(x.z, "float32"), given), w, HEADS, relative)
    found = on.numpy(on.room.attend(on.array(x.y, "bfloat16"), keys, w))
    assert np.abs(found - expected).max() < 0.02 * np.abs(expected).max()


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-12), ("float32", 0.01)])
def test_bfloat16_operands_for_the_gates(on, dtype, tolerance):
    """They round the products at width p alone, of float32 alone."""
    x = arrays()
    w = on.room.Projections(*(on.array(each, dtype) for each in x.weights))
    components = on.room.Components(*(on.array(each, dtype) for each in (x.log_weight, x.z, x.variance)))
    keys = on.room.mean_measure(components, w, HEADS)
    found = on.numpy(on.room.attend(on.array(x.y, dtype), keys, w, precision="bfloat16"))
    expected = by_hand(x, lambda *at: of_mixture(x, x.variance, *at))
    assert np.abs(found - expected).max() < tolerance * np.abs(expected).max()
    with pytest.raises(BadInput, match="precision is one of"):
        on.room.attend(on.array(x.y, dtype), keys, w, precision="half")


def test_refusals(on):
    x = arrays()
    with pytest.raises(BadInput, match="4 heads"):
        training(on, SimpleNamespace(**{**vars(x), "heads": 4}))
    with pytest.raises(BadInput, match="exact or reference"):
        evaluation(on, x, x.variance, "other")
