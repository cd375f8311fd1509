"""A plain attention layer turned into denoising attention, against torch's own layer; its prior against NumPy."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from guidebook.engines.identity import EmpiricalPrior, Posterior, components, empirical_prior, identity
from guidebook.engines.numpyro import denoising as in_jax
from guidebook.engines.pyro import denoising as in_torch
from guidebook.models.errors import BadInput

pytestmark = pytest.mark.usefixtures("_float64")
B, N, P, HEADS = 3, 5, 8, 2
WIDTH = P // HEADS
X = 2 * np.random.default_rng(0).standard_normal((B, N, P)) + 0.5
PRIOR = empirical_prior([(X, np.ones((B, N), bool))], WIDTH)


@pytest.fixture(params=[(in_torch, torch.as_tensor), (in_jax, jnp.asarray)], ids=["pyro", "numpyro"])
def on(request):
    return request.param


@pytest.fixture(scope="module")
def layer():
    torch.manual_seed(0)
    made = torch.nn.MultiheadAttention(P, HEADS, bias=True, batch_first=True, dtype=torch.float64)
    for each in made.parameters():
        torch.nn.init.normal_(each, std=0.25)
    return made


def plain(layer, causal):
    mask = torch.ones(N, N, dtype=torch.bool).triu(1) if causal else None
    x = torch.as_tensor(X)
    return layer(x, x, x, attn_mask=mask, need_weights=False)[0].detach().numpy()


def denoising(on, layer, causal, rule="exact", **tau):
    """The layer's output by denoising attention."""
    return projected(layer, heads_of(on, layer, causal, rule, **tau))


def projected(layer, heads):
    return heads @ layer.out_proj.weight.detach().numpy().T + layer.out_proj.bias.detach().numpy()


def heads_of(on, layer, causal, rule="exact", **tau):
    """Its heads' outputs side by side."""
    room, array = on
    queries, keys, values = np.split(layer.in_proj_weight.detach().numpy(), 3)
    query_bias, _, value_bias = np.split(layer.in_proj_bias.detach().numpy(), 3)
    w = room.Projections(*map(array, (queries, keys, values, query_bias, value_bias)))
    x = array(X)
    posterior = Posterior(*map(array, identity(PRIOR, WIDTH, **tau)))
    mean = room.Components(*components(x, posterior, EmpiricalPrior(*map(array, PRIOR))))
    visible = room.causal(x) if causal else None
    return np.asarray(room.attend(x, room.mean_measure(mean, w, HEADS, rule), w, visible))


@pytest.mark.parametrize("rule", ["exact", "reference"])
@pytest.mark.parametrize("causal", [False, True])
def test_far_from_the_prior_the_layer_is_the_plain_one(on, layer, causal, rule):
    np.testing.assert_allclose(denoising(on, layer, causal, rule, tau_alpha=50), plain(layer, causal), atol=1e-10)


@pytest.mark.parametrize("causal", [False, True])
def test_every_head_moves_to_the_prior_as_tau_alpha_falls(on, layer, causal):
    """On the line from the plain layer's output to the prior's alone; the log odds are linear in tau_alpha."""

    def at(tau):
        return heads_of(on, layer, causal, tau_alpha=tau).reshape(B, N, HEADS, WIDTH)

    start, end, taus = at(200), at(-200), np.array([2.0, 0.5, -1.0])
    odds = []
    for tau in taus:
        found = at(tau)
        share = ((found - start) * (end - start)).sum(-1) / ((end - start) ** 2).sum(-1)
        np.testing.assert_allclose(found, start + share[..., None] * (end - start), atol=1e-10)
        odds.append(np.log(share / (1 - share)))
    slope = np.broadcast_to(-PRIOR.log_alpha_scale, (2, B, N, HEADS))
    np.testing.assert_allclose(np.diff(odds, axis=0) / np.diff(taus)[:, None, None, None], slope, rtol=1e-6)


def test_the_prior_alone_is_what_is_left(on, layer):
    """σ² / (r + σ²) of the query and r / (r + σ²) of the mean, through each head's values."""
    queries, keys, values = np.split(layer.in_proj_weight.detach().numpy(), 3)
    query_bias, _, value_bias = np.split(layer.in_proj_bias.detach().numpy(), 3)
    gate = PRIOR.variance / (WIDTH**0.5 + PRIOR.variance)
    heads = []
    for h in range(HEADS):
        each = slice(h * WIDTH, (h + 1) * WIDTH)
        u = (X @ queries[each].T + query_bias[each]) @ keys[each]
        heads.append((gate * u + (1 - gate) * PRIOR.loc) @ values[each].T + value_bias[each])
    expected = projected(layer, np.concatenate(heads, -1))
    np.testing.assert_allclose(denoising(on, layer, False, tau_alpha=-200), expected, atol=1e-10)


def test_the_shares_of_the_prior_in_each_component():
    posterior = identity(PRIOR, WIDTH, tau_alpha=2, tau_sigma=0.5, tau_mu=0.25)
    log_alpha, loc, variance = components(X, posterior, PRIOR)
    expected = (X**2).sum(-1) / (2 * WIDTH**0.5) + 2 * PRIOR.log_alpha_scale
    np.testing.assert_allclose(log_alpha[:, 1:], expected)
    np.testing.assert_allclose(loc[:, 1:], 0.25 * X + 0.75 * PRIOR.loc)
    np.testing.assert_allclose(variance[:, 1:], np.broadcast_to(PRIOR.variance / 4, X.shape))
    np.testing.assert_allclose(log_alpha[:, 0], PRIOR.log_alpha)
    np.testing.assert_allclose(loc[:, 0], np.broadcast_to(PRIOR.loc, (B, P)))
    np.testing.assert_allclose(variance[:, 0], np.broadcast_to(PRIOR.variance, (B, P)))


def test_the_empirical_prior_of_a_stream_is_that_of_all_its_vectors():
    """Far from 0, where a sum of squares would lose the variance; padding holds anything."""
    rng = np.random.default_rng(1)
    batches = []
    for rows, steps in ((4, 3), (1, 1), (2, 5), (3, 2)):
        x = 1e6 + rng.standard_normal((rows, steps, P))
        mask = rng.random((rows, steps)) < (0 if rows == 3 else 0.7)
        batches.append((np.where(mask[..., None], x, np.nan), mask))
    found = empirical_prior(batches, WIDTH)
    every = np.concatenate([x[mask] for x, mask in batches])
    log_alpha = (every**2).sum(-1) / (2 * WIDTH**0.5)
    expected = (every.mean(0), every.var(0, ddof=1), log_alpha.mean(), log_alpha.std(ddof=1))
    for got, wanted in zip(found, expected, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-8)


def test_refusals():
    with pytest.raises(BadInput, match="two vectors"):
        empirical_prior([(X[:1], np.arange(N)[None] < 1)], WIDTH)
    with pytest.raises(BadInput, match="shares"):
        identity(PRIOR, WIDTH, tau_sigma=-0.1)
