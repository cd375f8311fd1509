"""Whole programs where the evidence is known: every bound and every gap has an exact value to be compared with.

1. z ~ N(0, I), x ~ N(W z + b, s²): conjugate.
2. The sentence VAE with a vocabulary of 3, sentences of 3 tokens and one latent dimension: all 27 sentences are
   enumerated, the latent is integrated by quadrature.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.polynomial.hermite_e import hermegauss
from scipy.special import logsumexp
from scipy.stats import multivariate_normal, norm

from guidebook.guides import PAIRS, DiagonalNormal, LSTMEncoder, Pair, SentenceGuide
from guidebook.models import MLP, LSTMDecoder, SentenceModel, StandardNormal

pytestmark = pytest.mark.usefixtures("_float64")


def tightening(log_weights, sizes=(1, 4, 16, 64)):
    """The importance-weighted bounds (len(sizes), B) from one pool of particles (S, B), cut into groups.

    Groups of groups: by Jensen the bounds rise for any pool, not only in expectation.
    """
    pool = log_weights[: len(log_weights) // max(sizes) * max(sizes)]
    return np.stack(
        [(logsumexp(pool.reshape(-1, size, pool.shape[-1]), axis=1) - np.log(size)).mean(0) for size in sizes]
    )


# 1. Linear and Gaussian

D, Z, B, NOISE = 4, 2, 5, 0.7
RNG = np.random.default_rng(0)
LOADING = np.linalg.qr(RNG.normal(size=(D, Z)))[0] * [1.4, 0.6]  # orthogonal columns: the posterior factorises
OFFSET = RNG.normal(size=D)
PRECISION = 1 + (LOADING**2).sum(0) / NOISE**2


def linear(ppl, batch, nets):
    decoder = ppl.module("decoder", nets["decoder"])
    with ppl.plate("data", batch.data_size, subsample=batch.index), ppl.mask(batch.real):
        z = ppl.sample("z", ppl.dist.Normal(ppl.zeros((Z,)), 1.0).to_event(1))
        ppl.sample("x", ppl.dist.Normal(decoder(z), NOISE).to_event(1), obs=batch.x)


def linear_guide(ppl, batch, nets):
    encoder = ppl.module("encoder", nets["encoder"])
    with ppl.plate("data", batch.data_size, subsample=batch.index), ppl.mask(batch.real):
        found = encoder(batch.x)
        ppl.sample("z", ppl.dist.Normal(found[..., :Z], ppl.exp(found[..., Z:])).to_event(1))


LINEAR = Pair(
    model=linear,
    guide=linear_guide,
    networks={
        "decoder": MLP(inputs=Z, outputs=D, hidden=()),
        "encoder": MLP(inputs=D, outputs=2 * Z, hidden=()),
    },
)


def conjugate(both, engine, shift=0.0, stretch=1.0):
    """The true model; the exact posterior as its guide, then shifted and stretched."""
    batch = both.rows({"x": np.random.default_rng(1).normal(size=(B, D)) * 1.5})
    gain = (LOADING / NOISE**2 / PRECISION).T
    weights = {
        "decoder.weight_0": LOADING,
        "decoder.bias_0": OFFSET,
        "encoder.weight_0": np.concatenate([gain, np.zeros((Z, D))]),
        "encoder.bias_0": np.concatenate([shift - gain @ OFFSET, np.log(stretch * PRECISION**-0.5)]),
    }
    program = both.program(engine, LINEAR, data_size=B)
    state = program.load_weights(program.init(batch), weights)
    covariance = LOADING @ LOADING.T + NOISE**2 * np.eye(D)
    return program, state, batch, multivariate_normal(OFFSET, covariance).logpdf(batch["x"])


def test_the_exact_posterior_leaves_no_gap(both, engine):
    program, state, batch, evidence = conjugate(both, engine)
    weights = program.log_weights(state, batch, seed=0, particles=7, rows=12)
    np.testing.assert_allclose(weights, np.broadcast_to(evidence, (7, B)), rtol=1e-10)


def test_the_gap_is_the_kl_to_the_posterior(both, engine):
    shift, stretch = 0.4, 1.3
    program, state, batch, evidence = conjugate(both, engine, shift, stretch)
    weights = program.log_weights(state, batch, seed=0, particles=4096, rows=4096)
    gap = 0.5 * (stretch**2 - 1 - 2 * np.log(stretch) + shift**2 * PRECISION).sum()
    errors = weights.std(0) / 64
    assert np.abs((evidence - weights.mean(0) - gap) / errors).max() < 4.5  # five means: false alarm below 5e-5
    bounds = tightening(weights)
    assert (np.diff(bounds, axis=0) > 0).all()
    np.testing.assert_allclose(bounds[-1], evidence, atol=0.05)
    assert (bounds < evidence + 0.05).all()


def test_chunks_of_particles_change_nothing(both, engine):
    """The memory bound of `log_weights` cuts the particles; odd cuts too."""
    program, state, batch, _ = conjugate(both, engine, 0.4, 1.3)
    whole = program.log_weights(state, batch, seed=0, particles=6, rows=1000)
    for rows in (2 * B, 3 * B, B, 1):
        np.testing.assert_allclose(program.log_weights(state, batch, seed=0, particles=6, rows=rows), whole, rtol=1e-12)
    assert program.log_weights(state, batch, seed=0, particles=7, rows=3 * B).shape == (7, B)


# 2. Three words, three steps

V, T = 3, 3
SENTENCES = np.stack(np.meshgrid(*[np.arange(V)] * T, indexing="ij"), -1).reshape(-1, T)
ROWS = len(SENTENCES)
SENTENCE_VAE = PAIRS["sentence_vae"]
CELL = {"embedding": 4, "hidden": 5, "initial_scale": 0.9, "embedding_scale": 1.0}
MODEL = SentenceModel(prior=StandardNormal(dim=1), decoder=LSTMDecoder(dropout=0.0, **CELL))
GUIDE = SentenceGuide(posterior=DiagonalNormal(initial_scale=1.5), encoder=LSTMEncoder(**CELL))


def enumerated():
    """Every sequence of T ids as one row. The ids 0, 1, 2 are words here like any other: three tokens always count."""
    tokens = np.concatenate([np.ones((ROWS, 1), int), SENTENCES], 1).astype(np.int32)
    return {
        "tokens": tokens,
        "inputs": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "lengths": np.full(ROWS, T, np.int32),
        "weight": np.ones(ROWS, np.float32),
        "index": np.arange(ROWS, dtype=np.int32),
    }


def prior_guide(ppl, batch, nets):
    """q(z | x) = p(z): replayed noise is z itself."""
    with ppl.plate("sentences", batch.data_size, subsample=batch.index):
        ppl.sample("z", ppl.dist.Normal(ppl.zeros((len(batch.index), 1)), 1.0).to_event(1))


@pytest.fixture
def toy(both, engine):
    """What to ask of the toy: its terms at given standard noise, through its own guide or with z itself."""
    networks, batch = SENTENCE_VAE.realisable(MODEL, GUIDE, V), enumerated()

    def program(pair, noise=None):
        if noise is not None:
            z = np.broadcast_to(noise[:, None, None], (len(noise), ROWS, 1))
            pair = both.replaying(engine, pair, {"z": np.array(z)})
        made = both.program(engine, pair, networks, data_size=ROWS, seed=4)
        return made, made.init(batch)

    def terms(noise, pair=SENTENCE_VAE):
        made, state = program(pair, noise)
        return made.terms(state, batch, seed=0, particles=len(noise))

    return program, terms, batch


def test_every_bound_against_the_enumerated_evidence(toy):
    program, terms, batch = toy
    nodes, mass = hermegauss(80)
    mass = mass / mass.sum()
    likelihood = terms(nodes, replace(SENTENCE_VAE, guide=prior_guide)).log_likelihood["x"]
    np.testing.assert_allclose(np.exp(likelihood).sum(-1), 1.0, rtol=1e-12)  # p(x | z) sums to one for every z
    evidence = logsumexp(likelihood, axis=0, b=mass[:, None])
    assert np.exp(evidence).sum() == pytest.approx(1.0, rel=1e-12)
    assert np.ptp(evidence) > 0.5

    under_guide = terms(nodes)
    elbo = mass @ under_guide.elbo()  # the expectation under q, exactly
    assert (elbo < evidence).all()
    made, state = program(SENTENCE_VAE)
    q = made.posterior(state, batch)["z"]
    assert np.ptp(q.loc) > 0.1

    grid = np.linspace(-9, 9, 601)
    on_grid = terms(grid, replace(SENTENCE_VAE, guide=prior_guide)).log_likelihood["x"]
    posterior = norm.logpdf(grid)[:, None] + on_grid - evidence
    guide = norm.logpdf(grid[:, None], q.loc[:, 0], q.scale[:, 0])
    gap = np.trapezoid(np.exp(guide) * (guide - posterior), grid, axis=0)
    np.testing.assert_allclose(evidence - elbo, gap, atol=1e-5)

    weights = made.log_weights(state, batch, seed=0, particles=1024, rows=1024 * ROWS)
    bounds = tightening(weights)
    assert (np.diff(bounds, axis=0) > 0).all()
    errors = weights.std(0) / 32
    assert np.abs((weights.mean(0) - elbo) / errors).max() < 4.8  # 27 means: false alarm below 1e-4
    np.testing.assert_allclose(bounds[-1], evidence, atol=0.05)
