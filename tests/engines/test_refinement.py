"""Semi-amortised refinement: what it climbs to, its gradient, its parity, what is refused.

The toy: z ~ N(0, I), x ~ N(W z + b, s²), WᵀW diagonal, so that the posterior is a diagonal normal and log p(x) known.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import multivariate_normal

from guidebook.engines.protocol import Refinement
from guidebook.engines.refinement import descended
from guidebook.guides import PAIRS, DiagonalNormal, FlowNormal, GRUEncoder, LSTMEncoder, Pair, SentenceGuide
from guidebook.inference import KL
from guidebook.models import MLP, BadInput, GRUDecoder, LSTMDecoder, Network, SentenceModel, StandardNormal

D, Z, B, H, S = 4, 2, 5, 3, 0.7
RNG = np.random.default_rng(0)
LOADING = np.linalg.qr(RNG.normal(size=(D, Z)))[0] * [1.4, 0.6]
OFFSET = RNG.normal(size=D)
X = RNG.normal(size=(B, D)) * 1.5
PRECISION = 1 + (LOADING**2).sum(0) / S**2
NETWORKS = {
    "decoder": MLP(inputs=Z, outputs=D, hidden=()),
    "encoder": MLP(inputs=D, outputs=H, hidden=()),
    "posterior": Network(DiagonalNormal(initial_scale=0.5), {"features": H, "latent": Z}),
}
EXACT = Z**0.5 * np.repeat(np.concatenate([np.eye(Z), -np.eye(Z)])[:, None], B, 1)
"""Draws (2 Z, B, Z) with the first two moments of N(0, I): the mean of a quadratic over them is its expectation."""


def linear(ppl, batch, nets):
    decoder = ppl.module("decoder", nets["decoder"])
    with ppl.plate("data", batch.data_size, subsample=batch.index), ppl.mask(batch.real):
        z = ppl.sample("z", ppl.dist.Normal(ppl.zeros((Z,)), 1.0).to_event(1))
        ppl.sample("x", ppl.dist.Normal(decoder(z), S).to_event(1), obs=batch.x)


def amortised(ppl, batch, nets):
    encoder, posterior = (ppl.module(name, nets[name]) for name in ("encoder", "posterior"))
    with ppl.plate("data", batch.data_size, subsample=batch.index), ppl.mask(batch.real):
        ppl.sample("z", posterior(encoder(batch.x)))


LINEAR = Pair(model=linear, guide=amortised, networks=NETWORKS)


def refinement(steps=3, learning_rate=0.2, momentum=0.5, clip=5.0, backpropagate=True):
    return Refinement(steps, learning_rate, momentum, clip, backpropagate)


def toy(both, engine, noise=EXACT, filler=0, networks=None, **settings):
    batch = both.rows({"x": X}, filler)
    noise = np.concatenate([noise, noise[..., :1, :].repeat(filler, -2)], -2)
    divergence = KL(particles=len(noise)) if noise.ndim > 2 else KL()
    pair = replace(both.replaying(engine, LINEAR, {"z": noise}), networks=networks or NETWORKS)
    program = both.program(engine, pair, data_size=B, divergence=divergence, **settings)
    state = program.init(batch)
    start = program.weights(state) | {"decoder.weight_0": LOADING, "decoder.bias_0": OFFSET}
    return program, program.load_weights(state, start), batch


def elbo_of(info):
    return (info["log_likelihood/x"] - info["kl/z"]) / B


@pytest.mark.usefixtures("_float64")
def test_the_refined_elbo_climbs_to_the_evidence(both, engine):
    evidence = multivariate_normal(OFFSET, LOADING @ LOADING.T + S**2 * np.eye(D)).logpdf(X).mean()
    elbos = []
    for steps in (None, 1, 4, 300):
        program, state, batch = toy(both, engine, refinement=steps and refinement(steps, 0.1))
        elbos.append(elbo_of(both.gradients(program, state, batch)[1]))
    assert (np.diff(elbos) > 0).all()
    assert evidence - elbos[0] > 1.0
    assert elbos[-1] == pytest.approx(evidence, abs=1e-8)


def by_hand(program, state, batch, spec):
    """λ_K as μ and σ² (B, Z): the exact ELBO's gradients in μ and log σ², bounded per row; how many met the bound."""
    q = program.posterior(state, batch)["z"]
    at, velocity, met = np.concatenate([q.loc, 2 * np.log(q.scale)], -1)[:B], np.zeros((B, 2 * Z)), 0
    for _ in range(spec.steps):
        mu, variance = at[:, :Z], np.exp(at[:, Z:])
        gradient = np.concatenate(
            [mu * PRECISION - (X - OFFSET) @ LOADING / S**2, 0.5 * (variance * PRECISION - 1)], -1
        )
        norm = np.linalg.norm(gradient, axis=-1, keepdims=True)
        met += (norm > spec.clip).sum()
        velocity = spec.momentum * velocity + gradient * np.minimum(1, spec.clip / norm)
        at = at - spec.learning_rate * velocity
    return at[:, :Z], np.exp(at[:, Z:]), met


@pytest.mark.usefixtures("_float64")
def test_a_step_is_the_closed_gradient_of_each_datum(both, engine):
    """With momentum, and a bound that some rows meet; fillers beside."""
    spec = refinement(4, 0.1, clip=1.5)
    mu, variance, met = by_hand(*toy(both, engine, filler=2), spec)
    assert 0 < met < spec.steps * B
    squares = ((X - OFFSET - mu @ LOADING.T) ** 2).sum(-1) + (variance * (LOADING**2).sum(0)).sum(-1)
    kl = 0.5 * (mu**2 + variance - np.log(variance) - 1).sum(-1)
    elbo = -0.5 * squares / S**2 - D * np.log(S * (2 * np.pi) ** 0.5) - kl
    gradients, info = both.gradients(*toy(both, engine, filler=2, refinement=spec))
    assert elbo_of(info) == pytest.approx(elbo.mean(), rel=1e-10)
    assert all(np.isfinite(gradient).all() for gradient in gradients.values())


CELL = {"embedding": 4, "hidden": 5, "initial_scale": 0.9, "embedding_scale": 1.0}
SENTENCES = ((4, 5, 6), (5,), (6, 4), (4,))


def story(both, engine, kind, noise=None, **settings):
    """A pair with second derivatives of its own, its program, its state, a batch."""
    if kind in ("mlp", "flow"):
        networks = NETWORKS | {"decoder": MLP(inputs=Z, outputs=D, hidden=(6,))}
        if kind == "flow":
            networks["posterior"] = Network(FlowNormal(initial_scale=0.5), {"features": H, "latent": Z})
        pair, batch = replace(LINEAR, networks=networks), both.rows({"x": X})
        networks = pair.realisable(None, None)
    else:
        decoder, encoder = {"lstm": (LSTMDecoder, LSTMEncoder), "gru": (GRUDecoder, GRUEncoder)}[kind]
        model = SentenceModel(prior=StandardNormal(dim=Z), decoder=decoder(dropout=0.0, **CELL))
        guide = SentenceGuide(posterior=DiagonalNormal(initial_scale=0.5), encoder=encoder(**CELL))
        pair, batch = PAIRS["sentence_vae"], both.sentences(*SENTENCES, filler=1)
        networks = pair.realisable(model, guide, 7)
    rows = len(batch["weight"])
    if noise is not None:
        pair = both.replaying(engine, pair, {"z": noise[..., :rows, :]})
    divergence = KL(particles=2) if noise is not None and noise.ndim > 2 else KL()
    program = both.program(engine, pair, networks, data_size=rows, **{"divergence": divergence} | settings)
    return program, program.init(batch), batch


@pytest.mark.usefixtures("_float64")
@pytest.mark.parametrize("kind", ["mlp", "flow", "lstm", "gru"])
def test_the_gradient_through_the_refinement_is_that_of_finite_differences(both, engine, kind):
    """Along one direction a side, with clipping, momentum and a KL weight: d/dε of the loss at λ_K."""
    program, state, batch = story(both, engine, kind, refinement=refinement(3, 0.3, clip=0.8))
    start, sides = program.weights(state), program.sides(state)
    gradients, _ = both.gradients(program, state, batch, weight=0.75)
    for side in ("model", "guide"):
        rng = np.random.default_rng(1)
        direction = {name: rng.normal(size=w.shape) * (sides[name] == side) for name, w in start.items()}

        def loss(epsilon, direction=direction):
            moved = {name: start[name] + epsilon * direction[name] for name in start}
            state = program.load_weights(program.init(batch), moved)
            return both.gradients(program, state, batch, weight=0.75)[1]["objective"] / len(batch["weight"])

        slope = sum((gradients[name] * direction[name]).sum() for name in start)
        assert slope == pytest.approx((loss(1e-5) - loss(-1e-5)) / 2e-5, rel=1e-6), side


NOISE = np.random.default_rng(3).normal(size=(2, B, Z))


@pytest.mark.usefixtures("_float64")
@pytest.mark.parametrize("kind", ["mlp", "lstm", "gru"])
@pytest.mark.parametrize("backpropagate", [True, False], ids=["through", "detached"])
def test_the_engines_refine_alike(both, kind, backpropagate):
    found, noise = [], NOISE if kind == "mlp" else NOISE[0]
    for engine in both.engines:
        spec = refinement(3, 0.3, clip=0.8, backpropagate=backpropagate)
        program, state, batch = story(both, engine, kind, noise, refinement=spec)
        found.append(both.gradients(program, state, batch, weight=0.75))
    (ours, one), (theirs, other) = found
    assert one == pytest.approx(other, rel=1e-8)
    for name in ours:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-7, atol=1e-10, err_msg=name)


@pytest.mark.usefixtures("_float64")
def test_detached_the_guide_learns_at_the_start_and_the_model_at_the_end(both, engine):
    """The guide's gradient is that of plain training; the model's is the closed one of q held at λ_K."""
    spec = refinement(4, 0.1, clip=1.5, backpropagate=False)
    plain, _ = both.gradients(*toy(both, engine))
    found, info = both.gradients(*toy(both, engine, refinement=spec))
    through, other = both.gradients(*toy(both, engine, refinement=replace(spec, backpropagate=True)))
    mu, variance, _ = by_hand(*toy(both, engine), spec)
    residual = X - OFFSET - mu @ LOADING.T
    slope = (LOADING * variance.sum(0) - residual.T @ mu) / S**2 / B
    np.testing.assert_allclose(found["decoder.bias_0"], -residual.mean(0) / S**2, rtol=1e-9)
    np.testing.assert_allclose(found["decoder.weight_0"], slope, rtol=1e-9)
    for name in ("encoder.weight_0", "encoder.bias_0", "posterior.weight"):
        np.testing.assert_allclose(found[name], plain[name], rtol=1e-9, atol=1e-13)
        assert not np.allclose(through[name], plain[name], rtol=0.1)
    assert info["objective"] == pytest.approx(other["objective"], rel=1e-12)


def test_the_momentum_is_that_of_polyak():
    spec = refinement(1, 0.1, 0.5, clip=np.inf)
    at, velocity = descended(np.ones((1, 2)), np.full((1, 2), 2.0), np.full((1, 2), 30.0), spec)
    np.testing.assert_allclose(velocity, 31.0)
    np.testing.assert_allclose(at, 1 - 3.1)


def test_a_guide_with_another_number_of_posteriors_is_refused(both, engine):
    def twice(ppl, batch, nets):
        amortised(ppl, batch, nets)
        ppl.module("posterior", nets["posterior"])(ppl.module("encoder", nets["encoder"])(batch.x))

    def never(ppl, batch, nets):
        with ppl.plate("data", batch.data_size, subsample=batch.index):
            ppl.sample("z", ppl.dist.Normal(ppl.module("encoder", nets["encoder"])(batch.x)[..., :Z], 1.0).to_event(1))

    batch = both.rows({"x": X})
    for guide, count in ((twice, 2), (never, 0)):
        pair = replace(LINEAR, guide=guide, name="mine")
        program = both.program(engine, pair, data_size=B, refinement=refinement(), dtype="float32")
        with pytest.raises(BadInput, match=f"the guide of the pair 'mine' asks one {count} times"):
            program.init(batch)
