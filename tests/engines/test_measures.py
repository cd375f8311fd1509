"""Laws of what a decoder attends to: moments, closed forms, PyTorch's own, and the gradient of a mixture's shares."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from scipy.special import digamma

from guidebook.guides.measures import DirichletProcessPosterior
from guidebook.models.measures import NEVER, DirichletProcessPrior, NormalVectorsPrior

RNG = np.random.default_rng(0)
pytestmark = pytest.mark.usefixtures("_float64")


def made(engine, x):
    return torch.as_tensor(x) if engine == "pyro" else jnp.asarray(x)


def prior_of(both, engine, spec):
    return both.realised(engine, spec, {})


def drawn(both, engine, law, count):
    if engine == "pyro":
        torch.manual_seed(0)
        return both.numpy_of(law.sample((count,)))
    return np.asarray(law.sample(jax.random.key(0), (count,)))


def test_the_prior_grows_with_the_sentence(both, engine):
    """Spec 23: total count α^p + α^Δ n, by its parameter and by E log π_k = ψ(B / K₀) − ψ(B) over κ (n + 1) atoms."""
    spec = DirichletProcessPrior(dim=2, pseudo_count=0.5, increment=0.75, places=2, loc=0.3, scale=1.5)
    law = prior_of(both, engine, spec)(made(engine, np.array([1, 3])), 4)
    totals = np.exp(both.numpy_of(law.log_total))
    np.testing.assert_allclose(totals, [1.25, 2.75])
    draws = drawn(both, engine, law, 20_000)
    assert draws.shape == (20_000, 2, 10, 3)
    for row, n in enumerate((1, 3)):
        taken = np.tile(np.arange(5) <= n, 2)
        assert (draws[:, row, ~taken, 0] == np.float32(NEVER)).all() or (draws[:, row, ~taken, 0] <= NEVER).all()
        logs, z = draws[:, row, taken, 0], draws[:, row, taken, 1:]
        wanted = digamma(totals[row] / (2 * (n + 1))) - digamma(totals[row])
        assert (np.abs(logs.mean(0) - wanted) < 4.5 * logs.std(0) / math.sqrt(20_000)).all()
        assert (np.abs(z.mean(0) - 0.3) < 4.5 * 1.5 / math.sqrt(20_000)).all()
        assert (np.abs(z.var(0) / 2.25 - 1) < 4.5 * math.sqrt(2 / 20_000)).all()


@pytest.mark.parametrize("share", [0.05, 0.3, 1 / 3, 0.5, 0.7, 1.0])
def test_evenly_spread_places(share):
    spec = NormalVectorsPrior(share=share)
    for steps in range(1, 40):
        kept = spec.kept(steps)
        assert len(kept) == math.ceil(round(share * steps, 9))
        assert kept[0] == 0
        assert spec.kept(steps + 1)[: len(kept)] == kept
        assert not kept[1:] or np.ptp(np.diff(kept)) <= 1


def test_sets_of_vectors(both, engine):
    """Moments, density and KL against PyTorch's normals, and the KL of points."""
    room = both.engine_module(engine, "vector_set")
    loc, scale = RNG.normal(size=(2, 3, 2)), RNG.uniform(0.3, 1.5, size=(2, 3, 2))
    mask = np.array([[True, True, False], [True, False, False]])
    q = room.VectorSet(*(made(engine, x) for x in (loc, scale, mask)))
    p = room.VectorSet(*(made(engine, x) for x in (0 * loc, 0 * loc + 1, mask)))
    draws = drawn(both, engine, q, 40_000)
    real = draws[:, mask]
    assert (real[..., 0] == 0).all()
    assert (draws[:, ~mask][..., 1:] == 0).all()
    error = scale[mask] / 200
    assert (np.abs(real[..., 1:].mean(0) - loc[mask]) < 4.5 * error).all()
    assert (np.abs(real[..., 1:].var(0) / scale[mask] ** 2 - 1) < 4.5 * math.sqrt(2 / 40_000)).all()
    normal = torch.distributions.Normal(torch.as_tensor(loc), torch.as_tensor(scale))
    standard = torch.distributions.Normal(0.0, torch.ones_like(normal.loc))
    keep = torch.as_tensor(mask)[..., None]
    wanted = torch.where(keep, torch.distributions.kl_divergence(normal, standard), 0.0).sum((-1, -2)).numpy()
    kl = both.engine_module(engine, "analytic").analytic_kl
    np.testing.assert_allclose(both.numpy_of(kl(q, p))[..., 0], wanted, rtol=1e-10)
    value = made(engine, draws)
    ratio = both.numpy_of(q.log_prob(value)) - both.numpy_of(p.log_prob(value))
    assert (np.abs(ratio.mean(0) - wanted) < 4.5 * ratio.std(0) / 200).all()
    density = torch.where(keep, normal.log_prob(torch.tensor(draws[0][..., 1:])), 0.0).sum((-1, -2))
    np.testing.assert_allclose(both.numpy_of(q.log_prob(value))[0], density.numpy(), rtol=1e-10)
    points = room.VectorSet(made(engine, loc), None, made(engine, mask))
    at = -torch.where(keep, standard.log_prob(normal.loc), 0.0).sum((-1, -2))
    np.testing.assert_allclose(both.numpy_of(kl(points, p))[..., 0], at.numpy(), rtol=1e-10)


def test_the_penalties_of_the_paper_stay_in_evaluation(both, engine):
    """What `both.realised` gives is in evaluation: stratified atoms, and penalties in place of their KL."""
    spec = DirichletProcessPosterior(objective="paper", lambda_weights=0.3, lambda_locations=0.7)
    posterior = both.realised(engine, spec, features=4, latent=2)
    prior = both.realised(engine, DirichletProcessPrior(dim=2))
    lengths = made(engine, np.array([3, 1]))
    q = posterior(made(engine, RNG.normal(size=(2, 3, 4))), lengths, prior=prior)
    assert q.scheme == "stratified"
    weights, locations = both.engine_module(engine, "dirichlet_process").regularisers(q, prior(lengths, 3))
    kl = both.engine_module(engine, "analytic").analytic_kl(q, prior(lengths, 3))
    wanted = 0.3 * both.numpy_of(weights) + 0.7 * both.numpy_of(locations)
    np.testing.assert_allclose(both.numpy_of(kl)[..., 0], wanted)


ALPHA, CENTRES, WIDTH = np.array([0.6, 1.4]), np.array([-3.0, 3.0]), 0.5


def shares_gradient(both, engine, places, f, count, log_alpha=None):
    """Draws of ∂ f / ∂ log α_2 by gradient = "weights", (count,)."""
    room = both.engine_module(engine, "dirichlet_process")
    loc, scale = CENTRES[:, None], np.full((2, 1), WIDTH)

    def value(log_alpha):
        keep = {"places": places, "scheme": "mixture", "gradient": "weights"}
        q = room.BoundedDirichletProcess(log_alpha, made(engine, loc), made(engine, scale), **keep)
        draw = q.rsample() if engine == "pyro" else q.sample(jax.random.key(3))
        exp = torch.exp if engine == "pyro" else jnp.exp
        return f((exp(draw[..., 0]) * draw[..., 1]).sum(-1))

    log_alpha = np.broadcast_to(np.log(ALPHA) if log_alpha is None else log_alpha, (count, 2)).copy()
    if engine == "pyro":
        torch.manual_seed(3)
        leaf = torch.tensor(log_alpha, requires_grad=True)
        return torch.autograd.grad(value(leaf).sum(), leaf)[0].numpy()[:, 1]
    return np.asarray(jax.grad(lambda x: value(x).sum())(jnp.asarray(log_alpha)))[:, 1]


def test_shares_that_move_weights_are_unbiased_where_linear(both, engine):
    """E Σ π_k z_k = Σ (α_i / A) μ_i: its gradient in log α_2 is s_2 (μ_2 − mean)."""
    found = shares_gradient(both, engine, 2, lambda mean: mean, 10_000)
    share = ALPHA / ALPHA.sum()
    wanted = share[1] * (CENTRES[1] - share @ CENTRES)
    assert abs(found.mean() - wanted) < 4.5 * found.std() / 100
    assert found.std() / 100 < 0.05 * wanted


def test_their_bias_shrinks_with_the_weight_of_single_atoms(both, engine):
    """E (Σ π_k z_k)² in closed form, by E Σ_k π_k² = (A / K₀ + 1) / (A + 1): many light atoms, and few heavy ones."""

    def exact(log_alpha, atoms):
        alpha = np.exp(log_alpha)
        share, total = alpha / alpha.sum(), alpha.sum()
        mean, second = share @ CENTRES, share @ (CENTRES**2 + WIDTH**2)
        squares = (total / atoms + 1) / (total + 1)
        return squares * second + (1 - squares) * mean**2

    biases = []
    for total, places, count in ((2.0, 1, 20_000), (40.0, 10, 4_000)):
        log_alpha, step = np.log(ALPHA * total / 2), np.array([0.0, 1e-5])
        wanted = (exact(log_alpha + step, 2 * places) - exact(log_alpha - step, 2 * places)) / 2e-5
        found = shares_gradient(both, engine, places, lambda mean: mean**2, count, log_alpha)
        biases.append((abs(found.mean() - wanted), found.std() / math.sqrt(count)))
    (heavy, error), (light, other) = biases
    assert heavy > 6 * error, biases
    assert light < heavy / 4 + 4.5 * other, biases
    assert other < heavy / 10
