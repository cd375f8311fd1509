"""Amortised SVGD on the engines: both sides' gradients in closed form, parity, and where the guide comes to rest.

The toy: z ~ N(0, I), x ~ N(W z + b, s²):  z | x ~ N(P⁻¹ Wᵀ (x − b) / s², P⁻¹),   P = I + Wᵀ W / s²
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from guidebook.engines.protocol import Control, OptimiserSpec
from guidebook.guides import DiagonalNormal, Pair
from guidebook.inference import SVGD
from guidebook.models import MLP, BadInput, Network

D, Z, B, H, S, NOISE = 4, 2, 5, 3, 6, 0.7
RNG = np.random.default_rng(0)
LOADING, OFFSET = RNG.normal(size=(D, Z)), RNG.normal(size=D)
X, EPSILON = RNG.normal(size=(B, D)), RNG.normal(size=(S, B, Z))


def networks(latent=Z, hidden=()):
    return {
        "decoder": MLP(inputs=latent, outputs=D, hidden=hidden),
        "encoder": MLP(inputs=D, outputs=H, hidden=()),
        "posterior": Network(DiagonalNormal(initial_scale=0.5), {"features": H, "latent": latent}),
    }


def story(latent):
    def linear(ppl, batch, nets):
        decoder = ppl.module("decoder", nets["decoder"])
        with ppl.plate("data", batch.data_size, subsample=batch.index), ppl.mask(batch.real):
            z = ppl.sample("z", ppl.dist.Normal(ppl.zeros((latent,)), 1.0).to_event(1))
            ppl.sample("x", ppl.dist.Normal(decoder(z), NOISE).to_event(1), obs=batch.x)

    return linear


def amortised(ppl, batch, nets):
    encoder, posterior = (ppl.module(name, nets[name]) for name in ("encoder", "posterior"))
    with ppl.plate("data", batch.data_size, subsample=batch.index), ppl.mask(batch.real):
        ppl.sample("z", posterior(encoder(batch.x)))


LINEAR = Pair(model=story(Z), guide=amortised, networks=networks())


def by_hand(z, likelihood, prior, weight):
    """φ (S, B, Z), particle by particle."""
    direction = np.zeros_like(z)
    for row in range(z.shape[1]):
        h = np.median([np.linalg.norm(z[i, row] - z[j, row]) for i in range(S) for j in range(i)]) ** 2 / np.log(S)
        for i in range(S):
            for j in range(S):
                apart = z[j, row] - z[i, row]
                kernel = np.exp(-(apart**2).sum() / h)
                score = likelihood[j, row] + weight * prior[j, row]
                direction[i, row] += kernel * (score - weight * 2 / h * apart) / S
    return direction


@pytest.mark.usefixtures("_float64")
@pytest.mark.parametrize("weight", [1.0, 0.375])
def test_both_gradients_are_those_of_a_double_loop(both, engine, weight):
    """Fillers beside. The guide's: −(1/S) Σ φ(z_i) · ∂z_i by μ and log σ², then through W h; the model's in closed form."""
    batch = both.rows({"x": X}, filler=2)
    noise = np.concatenate([EPSILON, EPSILON[:, :2]], 1)
    pair = both.replaying(engine, LINEAR, {"z": noise})
    program = both.program(engine, pair, data_size=50, divergence=SVGD(particles=S))
    state = program.init(batch)
    start = program.weights(state) | {"decoder.weight_0": LOADING, "decoder.bias_0": OFFSET}
    state = program.load_weights(state, start)
    q = program.posterior(state, batch)["z"]
    h = X @ start["encoder.weight_0"].T + start["encoder.bias_0"]
    z = q.loc[:B] + q.scale[:B] * EPSILON
    residual = X - OFFSET - z @ LOADING.T
    direction = by_hand(z, residual @ LOADING / NOISE**2, -z, weight)
    by_loc, by_log_variance = -direction.mean(0), -(direction * 0.5 * q.scale[:B] * EPSILON).mean(0)
    found, info = both.gradients(program, state, batch, weight=weight)
    rows = B + 2
    guide = np.concatenate([by_loc, by_log_variance], -1).T @ h / rows
    np.testing.assert_allclose(found["posterior.weight"], guide, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(found["decoder.bias_0"], -residual.mean(0).sum(0) / NOISE**2 / rows, rtol=1e-8)
    slope = -np.einsum("sbd,sbz->dz", residual, z) / S / NOISE**2 / rows
    np.testing.assert_allclose(found["decoder.weight_0"], slope, rtol=1e-8, atol=1e-10)
    log_q = -0.5 * EPSILON**2 - np.log(q.scale[:B])
    value = 0.5 * (residual**2).sum(-1) / NOISE**2 + D * np.log(NOISE * (2 * np.pi) ** 0.5)
    value = (value + weight * (log_q + 0.5 * z**2).sum(-1)).mean(0).sum()
    assert info["objective"] == pytest.approx(value, rel=1e-9)


@pytest.mark.usefixtures("_float64")
def test_the_engines_agree_where_the_decoder_is_no_line(both):
    found = []
    for engine in both.engines:
        pair = both.replaying(engine, replace(LINEAR, networks=networks(hidden=(5,))), {"z": EPSILON})
        program = both.program(engine, pair, data_size=B, divergence=SVGD(particles=S))
        batch = both.rows({"x": X})
        found.append(both.gradients(program, program.init(batch), batch, weight=0.75))
    (ours, one), (theirs, other) = found
    assert one == pytest.approx(other, rel=1e-9)
    for name in ours:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-8, atol=1e-11, err_msg=name)


def narrowing(particles, draws=20000):
    """The variance at rest over that of the posterior, one dimension, S particles; and its standard error.

    With z = m + t ε and log p that of N(m, s²), 0 = E Σ_ij k_ij (−t ε_j / s² + 2 (ε_i − ε_j) / (t g)) ε_i, t² g = h,
    where k and g are of ε alone:  t² / s² = E Σ k_ij 2 (ε_i − ε_j) ε_i / g over E Σ k_ij ε_i ε_j.
    """
    noise = np.random.default_rng(5).normal(size=(draws, particles))
    apart = noise[:, :, None] - noise[:, None]
    rows, columns = np.triu_indices(particles, 1)
    g = np.median(np.abs(apart[:, rows, columns]), -1)[:, None, None] ** 2 / np.log(particles)
    kernel = np.exp(-(apart**2) / g)
    above = (kernel * 2 * apart * noise[:, :, None] / g).sum((1, 2))
    below = (kernel * noise[:, :, None] * noise[:, None]).sum((1, 2))
    ratio = above.mean() / below.mean()
    return ratio, (above - ratio * below).std() / below.mean() / draws**0.5


@pytest.mark.usefixtures("_float64")
def test_the_guide_comes_to_rest_beside_the_posterior(both, engine):
    """At its mean, and at the variance at which so many particles rest: a little less than the posterior's."""
    rows, particles = 128, 16
    x = np.random.default_rng(1).normal(size=(rows, D)) * 1.5
    batch = both.rows({"x": x})
    loading = np.array([[0.9], [-0.6], [0.4], [0.1]])
    adam = {side: OptimiserSpec("adam") for side in ("model", "guide")}
    pair = Pair(model=story(1), guide=amortised, networks=networks(latent=1))
    program = both.program(engine, pair, data_size=rows, divergence=SVGD(particles=particles), optimisers=adam)
    state = program.init(batch)
    start = program.weights(state) | {"decoder.weight_0": loading, "decoder.bias_0": OFFSET}
    state = program.load_weights(state, start)
    locs, variances = [], []
    for step in range(400):
        rate = 0.05 * 0.01 ** (step / 400)
        state, _ = program.step(state, [batch], Control(step, 1.0, {"model": rate, "guide": rate}, ("guide",)))
        if step >= 300 and step % 10 == 0:
            q = program.posterior(state, batch)["z"]
            locs.append(q.loc[:, 0])
            variances.append(q.scale[:, 0] ** 2)
    precision = 1 + (loading**2).sum() / NOISE**2
    exact = ((x - OFFSET) @ loading)[:, 0] / NOISE**2 / precision
    ratio, error = narrowing(particles)
    np.testing.assert_array_equal(program.weights(state)["decoder.weight_0"], loading)
    np.testing.assert_allclose(np.mean(locs, 0), exact, atol=0.03 * precision**-0.5)
    found = np.mean(variances, 0) * precision
    assert abs(found.mean() - ratio) < 4.5 * np.hypot(error, (2 / (rows * particles * 100)) ** 0.5) + 0.005
    assert found.std() < 0.02


def test_more_particles_narrow_less():
    ratios = [narrowing(particles, 3000)[0] for particles in (4, 16, 64)]
    assert ratios[0] < 0.4 < ratios[1] < 0.7 < 0.8 < ratios[2] < 1


@pytest.mark.usefixtures("_float64")
def test_a_latent_with_edges_is_refused(both, engine):
    def boxed(ppl, batch, nets):
        decoder = ppl.module("decoder", nets["decoder"])
        with ppl.plate("data", batch.data_size, subsample=batch.index):
            z = ppl.sample("z", ppl.dist.Gamma(ppl.zeros((Z,)) + 2.0, 1.0).to_event(1))
            ppl.sample("x", ppl.dist.Normal(decoder(z), NOISE).to_event(1), obs=batch.x)

    def positive(ppl, batch, nets):
        encoder = ppl.module("encoder", nets["encoder"])
        with ppl.plate("data", batch.data_size, subsample=batch.index):
            ppl.sample("z", ppl.dist.Gamma(ppl.softplus(encoder(batch.x))[..., :Z] + 0.1, 1.0).to_event(1))

    pair = Pair(model=boxed, guide=positive, networks=networks())
    with pytest.raises(BadInput, match=r"in all of R\^D, and the latent 'z' lives elsewhere"):
        both.program(engine, pair, data_size=B, divergence=SVGD()).init(both.rows({"x": X}))
