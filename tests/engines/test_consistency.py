"""Consistency regularisation: its value in closed form, its limits, its gradient, the divergence where none is registered."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import logistic

from guidebook.guides import PAIRS, DiagonalNormal, Logistic, LSTMEncoder, Pair, SentenceGuide
from guidebook.inference import KL
from guidebook.models import MLP, LSTMDecoder, Network, SentenceModel, StandardNormal

D, Z, B, H, S = 3, 2, 5, 3, 0.7
RNG = np.random.default_rng(0)
X, VIEW = RNG.normal(size=(2, B, D))
EXACT = Z**0.5 * np.repeat(np.concatenate([np.eye(Z), -np.eye(Z)])[:, None], B, 1)
"""Draws (2 Z, B, Z) with the first two moments of N(0, I): the mean of a quadratic over them is its expectation."""
NETWORKS = {
    "decoder": MLP(inputs=Z, outputs=D, hidden=()),
    "encoder": MLP(inputs=D, outputs=H, hidden=()),
    "posterior": Network(DiagonalNormal(initial_scale=0.5), {"features": H, "latent": Z}),
}


def linear(ppl, batch, nets):
    decoder = ppl.module("decoder", nets["decoder"])
    with ppl.plate("data", batch.data_size, subsample=batch.index), ppl.mask(batch.real):
        z = ppl.sample("z", ppl.dist.Normal(ppl.zeros((Z,)), 1.0).to_event(1))
        ppl.sample("x", ppl.dist.Normal(decoder(z), S).to_event(1), obs=batch.x)


def guide(ppl, batch, nets):
    encoder, posterior = (ppl.module(name, nets[name]) for name in ("encoder", "posterior"))
    with ppl.plate("data", batch.data_size, subsample=batch.index), ppl.mask(batch.real):
        ppl.sample("z", posterior(encoder(batch.x)))


LINEAR = Pair(model=linear, guide=guide, networks=NETWORKS)


def toy(both, engine, view=VIEW, noise=EXACT, filler=0, divergence=None, **settings):
    batch = both.rows({"x": X} | ({} if view is None else {"augmented/x": view}), filler)
    noise = np.concatenate([noise, noise[..., :1, :].repeat(filler, -2)], -2)
    pair = both.replaying(engine, LINEAR, {"z": noise})
    divergence = divergence or KL(particles=len(noise))
    program = both.program(engine, pair, data_size=B, divergence=divergence, **settings)
    return program, program.init(batch), batch


def negative_elbo(weights, q, x):
    decoder, offset = weights["decoder.weight_0"], weights["decoder.bias_0"]
    squares = ((x - offset - q.loc @ decoder.T) ** 2).sum(-1) + (q.scale**2 * (decoder**2).sum(0)).sum(-1)
    kl = 0.5 * (q.loc**2 + q.scale**2 - 2 * np.log(q.scale) - 1).sum(-1)
    return 0.5 * squares / S**2 + D * np.log(S * (2 * np.pi) ** 0.5) + kl


@pytest.mark.usefixtures("_float64")
def test_its_value_is_the_closed_one(both, engine):
    """Both bounds of the linear toy, and the KL of two diagonal normals from the augmented to the plain; fillers beside."""
    program, state, batch = toy(both, engine, filler=2, consistency=0.3)
    found = [program.posterior(state, both.rows({"x": x}, filler=2))["z"] for x in (X, VIEW)]
    plain, view = (q._replace(loc=q.loc[:B], scale=q.scale[:B]) for q in found)
    ratio = view.scale / plain.scale
    kl = (0.5 * (ratio**2 + ((view.loc - plain.loc) / plain.scale) ** 2 - 1) - np.log(ratio)).sum(-1)
    weights = program.weights(state)
    wanted = negative_elbo(weights, plain, X) + negative_elbo(weights, view, VIEW) + 0.3 * kl
    _, info = both.gradients(program, state, batch)
    assert info["objective"] == pytest.approx(wanted.sum(), rel=1e-10)
    assert info["kl/z"] - info["log_likelihood/x"] == pytest.approx(negative_elbo(weights, plain, X).sum(), rel=1e-10)


@pytest.mark.usefixtures("_float64")
@pytest.mark.parametrize("divergence", [None, KL(estimator="stl")], ids=["one loss", "two losses"])
def test_without_weight_and_augmentation_it_is_twice_the_plain_loss(both, engine, divergence):
    noise = EXACT if divergence is None else EXACT[0] + 0.3
    plain, info = both.gradients(*toy(both, engine, None, noise, divergence=divergence))
    twice, other = both.gradients(*toy(both, engine, X, noise, divergence=divergence, consistency=0.0))
    assert other["objective"] == pytest.approx(2 * info["objective"], rel=1e-12)
    for name in plain:
        np.testing.assert_allclose(twice[name], 2 * plain[name], rtol=1e-10, atol=1e-13)


@pytest.mark.usefixtures("_float64")
def test_its_gradient_is_that_of_finite_differences(both, engine):
    """In both posteriors' parameters."""
    program, state, batch = toy(both, engine, consistency=2.0)
    start = program.weights(state)
    gradients, _ = both.gradients(program, state, batch)
    direction = {name: np.random.default_rng(1).normal(size=weight.shape) for name, weight in start.items()}

    def loss(epsilon):
        moved = {name: start[name] + epsilon * direction[name] for name in start}
        state = program.load_weights(program.init(batch), moved)
        return both.gradients(program, state, batch)[1]["objective"] / B

    slope = sum((gradients[name] * direction[name]).sum() for name in start)
    assert slope == pytest.approx((loss(1e-5) - loss(-1e-5)) / 2e-5, rel=1e-7)


@pytest.mark.usefixtures("_float64")
def test_the_engines_have_the_same_gradient_for_sentences(both):
    cell = {"embedding": 4, "hidden": 5, "initial_scale": 0.9, "embedding_scale": 1.0}
    model = SentenceModel(prior=StandardNormal(dim=Z), decoder=LSTMDecoder(dropout=0.0, **cell))
    table = SentenceGuide(posterior=DiagonalNormal(initial_scale=0.5), encoder=LSTMEncoder(**cell))
    batch = both.sentences((4, 5, 6), (5,), (6, 4), filler=1)
    batch["augmented/tokens"] = np.where(batch["tokens"] == 5, 3, batch["tokens"])
    noise, found = np.random.default_rng(3).normal(size=(4, Z)), []
    for engine in both.engines:
        pair = both.replaying(engine, PAIRS["sentence_vae"], {"z": noise})
        program = both.program(engine, pair, pair.realisable(model, table, 7), data_size=4, consistency=0.5)
        found.append(both.gradients(program, program.init(batch), batch, weight=0.75))
    (ours, one), (theirs, other) = found
    assert one == pytest.approx(other, rel=1e-8)
    for name in ours:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-7, atol=1e-10, err_msg=name)


@pytest.mark.usefixtures("_float64")
def test_where_no_formula_is_registered_the_divergence_is_a_mean_over_draws_of_the_augmented(both, engine):
    """Two logistics, by quadrature: the loss with λ = 1 less that with λ = 0, in standard errors of 20,000 draws."""
    rows = 20_000
    networks = NETWORKS | {
        "decoder": MLP(inputs=1, outputs=D, hidden=()),
        "posterior": Network(Logistic(initial_scale=0.9), {"features": H, "latent": 1}),
    }
    batch = both.rows({"x": X[:1].repeat(rows, 0), "augmented/x": VIEW[:1].repeat(rows, 0)})
    losses, laws = [], []
    for weight in (0.0, 1.0):
        pair = replace(LINEAR, networks=networks, model=one_dimension)
        program = both.program(engine, pair, data_size=rows, consistency=weight)
        state = program.init(batch)
        found = [program.posterior(state, both.rows({"x": x[:1]}))["z"] for x in (VIEW, X)]
        laws = [logistic(q.loc.item(), q.scale.item() * 3**0.5 / np.pi) for q in found]
        losses.append(both.gradients(program, state, batch)[1]["objective"] / rows)

    def moment(power):
        def integrand(z):
            return laws[0].pdf(z) * (laws[0].logpdf(z) - laws[1].logpdf(z)) ** power

        return quad(integrand, *laws[0].interval(1 - 1e-12), limit=200)[0]

    error = ((moment(2) - moment(1) ** 2) / rows) ** 0.5
    assert moment(1) > 20 * error
    assert abs(losses[1] - losses[0] - moment(1)) < 4.5 * error


def one_dimension(ppl, batch, nets):
    decoder = ppl.module("decoder", nets["decoder"])
    with ppl.plate("data", batch.data_size, subsample=batch.index), ppl.mask(batch.real):
        z = ppl.sample("z", ppl.dist.Normal(ppl.zeros((1,)), 1.0).to_event(1))
        ppl.sample("x", ppl.dist.Normal(decoder(z), S).to_event(1), obs=batch.x)
