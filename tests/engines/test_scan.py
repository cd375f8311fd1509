"""Stories that run over time: `ppl.scan` on both engines, against the exact joint density of a state space.

z_t ~ N(a z_{t-1}, q),  z_0 = 0;   x_t ~ N(z_t, r);   D independent chains, B sequences of T steps
"""

from __future__ import annotations

import jax
import numpy as np
import pyro
import pytest
import torch
from scipy.stats import multivariate_normal, norm

from guidebook import engines
from guidebook.engines.seeds import derive
from guidebook.guides import Pair
from guidebook.inference import KL, SVGD
from guidebook.models import MLP, Batch

pytestmark = pytest.mark.usefixtures("_float64")
A, Q, R = 0.8, 0.6, 0.9
T, B, D, S = 4, 3, 2, 5


def space(ppl, batch, nets):
    """The emission is MLP(z) with an identity that is not learnt here, so that a network stands in the scan."""
    emission = ppl.module("emission", nets["emission"])

    def step(z, now):
        x, counted = now
        with ppl.plate("data", batch.data_size, subsample=batch.index), ppl.mask(batch.real):
            z = ppl.sample("z", ppl.dist.Normal(A * z, Q**0.5).to_event(1))
            with ppl.mask(counted):
                ppl.sample("x", ppl.dist.Normal(emission(z), R**0.5).to_event(1), obs=x)
        return z, z

    ppl.scan(step, ppl.zeros((len(batch.index), D)), (batch.x.swapaxes(0, 1), batch.counted.swapaxes(0, 1)))


def filtering(ppl, batch, nets):
    """q(z_t | z_{t-1}, x_t), each a linear map; where T = 1 the exact posterior is one of them."""
    update = ppl.module("update", nets["update"])

    def step(z, x):
        with ppl.plate("data", batch.data_size, subsample=batch.index), ppl.mask(batch.real):
            loc = update(ppl.concatenate((z, x), -1))
            z = ppl.sample("z", ppl.dist.Normal(loc, (Q * R / (Q + R)) ** 0.5).to_event(1))
        return z, z

    ppl.scan(step, ppl.zeros((len(batch.index), D)), batch.x.swapaxes(0, 1))


PAIR = Pair(
    model=space,
    guide=filtering,
    name="space",
    networks={"emission": MLP(inputs=D, outputs=D, hidden=()), "update": MLP(inputs=2 * D, outputs=D, hidden=())},
    sites={"z": ("time", "dim"), "x": ("time", "dim")},
)
EYE = np.eye(D)
GAIN = Q / (Q + R)
EXACT = {
    "emission.weight_0": EYE,
    "emission.bias_0": np.zeros(D),
    "update.weight_0": np.concatenate([(1 - GAIN) * A * EYE, GAIN * EYE], 1),
    "update.bias_0": np.zeros(D),
}


def covariance(steps):
    """Of (z_1 … z_T) of one chain."""
    transition = A ** np.maximum(np.subtract.outer(np.arange(steps), np.arange(steps)), 0.0)
    transition = np.tril(transition)
    return Q * transition @ transition.T


def data(both, steps=T, filler=0, seed=0):
    x = np.random.default_rng(seed).normal(size=(B, steps, D))
    return both.rows({"x": x, "counted": np.ones((B, steps), bool)}, filler)


@pytest.fixture(params=["pyro", "numpyro"])
def fitted(request, both):
    program = both.program(request.param, PAIR, data_size=30)
    state = program.init(data(both))
    return program, program.load_weights(state, EXACT)


def test_scanned_terms_are_the_joint_density(fitted, both):
    program, state = fitted
    batch = data(both)
    found, draws = (call(state, batch, seed=3, particles=S) for call in (program.terms, program.draws))
    z = draws["z"]
    assert list(draws) == ["z"]
    assert z.shape == (S, B, T, D)
    assert list(found.log_prior) == list(found.log_posterior) == ["z"]
    assert list(found.log_likelihood) == ["x"]
    chains = z.transpose(0, 1, 3, 2)
    prior = multivariate_normal(np.zeros(T), covariance(T)).logpdf(chains).sum(-1)
    np.testing.assert_allclose(found.log_prior["z"], prior, rtol=1e-10)
    likelihood = norm(z, R**0.5).logpdf(batch["x"]).sum((-1, -2))
    np.testing.assert_allclose(found.log_likelihood["x"], likelihood, rtol=1e-10)
    before = np.concatenate([np.zeros((S, B, 1, D)), z[:, :, :-1]], 2)
    loc = (1 - GAIN) * A * before + GAIN * batch["x"]
    posterior = norm(loc, (Q * R / (Q + R)) ** 0.5).logpdf(z).sum((-1, -2))
    np.testing.assert_allclose(found.log_posterior["z"], posterior, rtol=1e-10)
    np.testing.assert_allclose(
        program.log_weights(state, batch, seed=3, particles=S, rows=1000), found.log_weight(), rtol=1e-10
    )


def test_the_kl_is_summed_over_steps(fitted, both):
    """Each step's KL is analytic given the past: its mean over draws is the mean of log q − log p."""
    program, state = fitted
    found = program.terms(state, data(both), seed=0, particles=2000)
    assert found.sampled == ()
    assert found.kl["z"].shape == (2000, B, D)
    ratio = found.log_posterior["z"] - found.log_prior["z"]
    difference = ratio - found.kl_of("z")
    errors = difference.std(0) / 2000**0.5
    assert np.abs(difference.mean(0) / errors).max() < 4.5  # three normal means: false alarm below 1e-4


@pytest.mark.parametrize("steps", [B, 1], ids=["as many steps as rows", "one step"])
def test_draws_have_rows_then_time_whatever_the_sizes(fitted, both, steps):
    program, state = fitted
    batch = data(both, steps)
    batch["x"] = batch["x"] + 1000.0 * np.arange(B)[:, None, None]
    z = program.draws(state, batch, seed=0, particles=2)["z"]
    assert z.shape == (2, B, steps, D)
    assert (np.abs(z[:, 0]) < 100).all()
    assert (z[:, 1:, 0] > 100).all()


def test_evidence_bounds(fitted, both):
    program, state = fitted
    batch = data(both)
    exact = multivariate_normal(np.zeros(T), covariance(T) + R * np.eye(T))
    evidence = exact.logpdf(batch["x"].transpose(0, 2, 1)).sum(-1)
    weights = program.log_weights(state, batch, seed=1, particles=4000, rows=6000)
    elbo, error = weights.mean(0), weights.std(0) / 4000**0.5
    assert (elbo + 4 * error < evidence).all()  # filtering is not smoothing: a true gap
    bound = np.log(np.exp(weights - weights.max(0)).mean(0)) + weights.max(0)
    np.testing.assert_allclose(bound, evidence, atol=0.1)


def test_one_step_with_the_exact_posterior_has_no_gap(fitted, both):
    program, state = fitted
    batch = data(both, 1)
    evidence = norm(0, (Q + R) ** 0.5).logpdf(batch["x"]).sum((-1, -2))
    weights = program.log_weights(state, batch, seed=1, particles=S, rows=1000)
    np.testing.assert_allclose(weights, np.broadcast_to(evidence, (S, B)), rtol=1e-10)


def test_masked_steps_and_filler_change_nothing(fitted, both):
    """Ragged: what stands past a sequence's end has no part in any term or gradient."""
    program, state = fitted
    ragged = data(both, filler=2)
    ragged["counted"][1, 2:] = False
    spoilt = {name: array.copy() for name, array in ragged.items()}
    spoilt["x"][:, 3:] = np.where(ragged["counted"][:, 3:, None], ragged["x"][:, 3:], 77.0)
    terms = [program.terms(state, batch, seed=3) for batch in (ragged, spoilt)]
    np.testing.assert_allclose(*(found.log_likelihood["x"] for found in terms), rtol=1e-12)
    whole = program.terms(state, data(both, filler=2), seed=3)
    z = program.draws(state, ragged, seed=3, particles=1)["z"]
    lost = norm(z[0, 1, 2:], R**0.5).logpdf(ragged["x"][1, 2:]).sum()
    difference = whole.log_likelihood["x"] - terms[0].log_likelihood["x"]
    np.testing.assert_allclose(difference[0], [0, lost, 0, 0, 0], atol=1e-12)
    for table in (terms[0].log_prior, terms[0].log_likelihood):
        assert (next(iter(table.values()))[:, B:] == 0).all()


@pytest.mark.parametrize("particles", [1, 3])
def test_it_trains(both, engine, particles):
    """A few hundred steps towards the exact evidence of T = 1, from wrong weights."""
    program = both.program(engine, PAIR, data_size=B, divergence=KL(particles=particles), seed=1)
    batch = data(both, 1)
    state = program.init(batch)
    state = program.load_weights(state, EXACT | {"update.weight_0": np.zeros((D, 2 * D))})
    evidence = norm(0, (Q + R) ** 0.5).logpdf(batch["x"]).sum()
    before = program.terms(state, batch, seed=0).elbo().sum()
    for step in range(60):
        state, info = program.step(state, [batch], both.control(step, rate=0.1))
    # The model learns the spread of three points besides: it may pass the evidence of the true weights.
    assert program.terms(state, batch, seed=0).elbo().sum() > before + 0.5 * (evidence - before)
    assert float(info["rows"]) == B


def test_stock_svi_gives_the_same_loss(both, engine):
    """The story under the library's own SVI and our objective as its `loss=`, N / B scale included."""
    batch, size = data(both), 30
    program = both.program(engine, PAIR, data_size=size)
    program.load_weights(program.init(batch), EXACT)
    loss, scale = KL().on(engine), size / B
    room = engines.load(engine)
    if engine == "pyro":
        ppl = room.PPL(program.networks, dtype=torch.float64)
        model, guide = (
            lambda arrays, program=f: program(ppl, Batch(arrays, size), program_networks) for f in (space, filtering)
        )
        program_networks = program.networks
        pyro.clear_param_store()
        arrays = program.arrays(batch)
        svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), loss)
        stock = pyro.infer.TraceMeanField_ELBO()
        with torch.random.fork_rng():
            values = []
            for one in (loss.loss, stock.loss):
                torch.manual_seed(0)
                values.append(one(model, guide, arrays))
            svi.step(arrays)
        pyro.clear_param_store()
    else:
        from numpyro.infer import SVI, TraceMeanField_ELBO
        from numpyro.optim import Adam

        modules = program.modules({name: jax.numpy.asarray(value) for name, value in EXACT.items()})
        ppl = room.PPL(modules, dtype=jax.numpy.float64)
        model, guide = (
            lambda arrays, program=f: program(ppl, Batch(arrays, size), modules) for f in (space, filtering)
        )
        arrays = program.arrays(batch)
        values = []
        for one in (loss, TraceMeanField_ELBO()):
            svi = SVI(model, guide, Adam(1e-3), one)
            state = svi.init(jax.random.key(0), arrays)
            values.append(float(svi.evaluate(state, arrays)))
        svi.update(state, arrays)
    assert values[0] == pytest.approx(values[1], rel=1e-10)
    assert values[0] > scale  # corpus-scaled: ten times a batch of three


def test_particles_under_stock_svi(both, engine):
    """The mean of several particles' losses is the loss of as many calls, in expectation."""
    batch = data(both)
    program = both.program(engine, PAIR, data_size=B)
    state = program.load_weights(program.init(batch), EXACT)
    exact = -program.terms(state, batch, seed=derive(0, "reference"), particles=4000).elbo()
    particles = 400
    loss = KL(particles=particles).on(engine)
    room = engines.load(engine)
    arrays = program.arrays(batch)
    if engine == "pyro":
        ppl = room.PPL(program.networks, dtype=torch.float64, register=False)
        model, guide = (lambda f=f: f(ppl, Batch(arrays, B), program.networks) for f in (space, filtering))
        with torch.random.fork_rng():
            torch.manual_seed(0)
            value = loss.loss(model, guide)
    else:
        modules = program.modules({name: jax.numpy.asarray(value) for name, value in EXACT.items()})
        ppl = room.PPL(modules, dtype=jax.numpy.float64, register=False)
        model, guide = (lambda f=f: f(ppl, Batch(arrays, B), modules) for f in (space, filtering))
        value = float(loss.loss(jax.random.key(0), {}, model, guide))
    total = exact.sum(1)
    error = total.std() * (1 / 4000 + 1 / particles) ** 0.5
    assert abs(value - total.mean()) < 4.5 * error


def test_scores_are_those_of_the_joint_density(both, engine):
    """∇_z of both its parts, time before dimension: (x − z) / r, and −Σ⁻¹ z, which later steps have a part in."""
    program, batch = both.program(engine, PAIR, data_size=30, divergence=SVGD(particles=S)), data(both)
    state = program.load_weights(program.init(batch), EXACT)
    found, draws = (call(state, batch, seed=3, particles=S) for call in (program.terms, program.draws))
    z = draws["z"]
    np.testing.assert_allclose(found.latent["z"].reshape(z.shape), z, rtol=1e-12)
    likelihood, prior = found.joint_score["z"].reshape(2, *z.shape)
    np.testing.assert_allclose(likelihood, (batch["x"] - z) / R, rtol=1e-9, atol=1e-12)
    exact = -np.einsum("ts,nbsd->nbtd", np.linalg.inv(covariance(T)), z)
    np.testing.assert_allclose(prior, exact, rtol=1e-9, atol=1e-12)
