"""Particle filters on both engines against the Kalman filter, against whole paths, and against enumerated ancestors."""

from __future__ import annotations

import math
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import torch
from numpyro import handlers

from guidebook.engines.filtering import Filtering
from guidebook.engines.numpyro.filtering import filtered as numpyro_filtered
from guidebook.engines.numpyro.ppl import PPL as NumPyroPPL
from guidebook.engines.pyro.filtering import filtered as pyro_filtered
from guidebook.guides import PAIRS
from guidebook.inference.divergences import FIVO
from guidebook.models.errors import BadInput

pytestmark = pytest.mark.usefixtures("_float64")
ENGINES = ("pyro", "numpyro")
PAIR = PAIRS["linear_gaussian"]
A, Q, R, T = 0.9, 0.5, 0.4, 20
EVIDENCE = -30.822


def observations(steps=T):
    rng, z, x = np.random.default_rng(1), 0.0, []
    for _ in range(steps):
        z = A * z + math.sqrt(Q) * rng.standard_normal()
        x.append(z + math.sqrt(R) * rng.standard_normal())
    return np.array(x)


def kalman(x):
    """log p(x) of one sequence."""
    mean, variance, total = 0.0, 0.0, 0.0
    for one in x:
        mean, variance = A * mean, A * A * variance + Q
        spread = variance + R
        total -= 0.5 * (math.log(2 * math.pi * spread) + (one - mean) ** 2 / spread)
        mean, variance = mean + variance / spread * (one - mean), variance * R / spread
    return total


def batch_of(x, rows, pad=0):
    steps = len(x)
    padded = np.concatenate([x, np.full(pad, 7.0)])
    return {
        "x": np.tile(padded[None, :, None], (rows, 1, 1)),
        "mask": np.tile(np.arange(steps + pad) < steps, (rows, 1)),
        "lengths": np.full(rows, steps, np.int32),
        "weight": np.ones(rows, np.float32),
        "index": np.arange(rows, dtype=np.int32),
    }


def fitted(both, engine, proposal, rows, **settings):
    """The pair at the fixture's parameters; the filtering proposal is p(z_t | z_{t-1}, x_t)."""
    model = PAIR.model_spec.model_validate({"dynamics": {"decay": A, "state_variance": Q, "noise_variance": R}})
    guide = PAIR.guide_spec(proposal=proposal)
    found = both.program(engine, PAIR, PAIR.realisable(model, guide, 1), data_size=rows, **settings)
    state = found.init(batch_of(observations(), rows))
    if proposal == "filtering":
        v = 1 / (1 / Q + 1 / R)
        optimal = {"by_state": v * A / Q, "by_data": v / R, "log_variance": math.log(v)}
        weights = {f"gains.{name}": np.array([value]) for name, value in optimal.items()}
        state = found.load_weights(state, found.weights(state) | weights)
    return found, state


def test_the_fixture():
    assert abs(kalman(observations()) - EVIDENCE) < 5e-4


@pytest.mark.parametrize("engine", ENGINES)
def test_every_path_of_the_exact_smoother_is_the_evidence(both, engine):
    found, state = fitted(both, engine, "smoothing", 3)
    batch = batch_of(observations(), 3)
    weights = found.log_weights(state, batch, seed=0, particles=5, rows=6)
    np.testing.assert_allclose(weights, kalman(observations()), rtol=1e-10)


PUBLISHED = {
    "filtering": {"none": {1: -33.31, 4: -31.84, 16: -31.22, 64: -30.95}, "multinomial": {4: -31.67, 16: -31.07}},
    "prior": {"none": {4: -55.7, 16: -43.9}, "multinomial": {4: -38.8, 16: -32.9, 64: -31.4}},
}
CASES = [
    (proposal, resampling, size, bound)
    for proposal, table in PUBLISHED.items()
    for resampling, bounds in table.items()
    for size, bound in bounds.items()
]


@pytest.mark.parametrize(("proposal", "resampling", "size", "bound"), CASES)
def test_the_bounds_of_the_fixture(both, proposal, resampling, size, bound):
    """Four standard errors of our mean, and as much as the published figures are rounded and scattered themselves."""
    rows = 2000
    found, state = fitted(both, "pyro", proposal, rows)
    filtered = found.filter(
        state, batch_of(observations(), rows), seed=0, particles=size, filtering=Filtering(resampling)
    )
    values = filtered.log_evidence
    assert values.shape == (rows,)
    spread = values.std() / math.sqrt(rows)
    assert abs(values.mean() - bound) < 4 * spread + 0.003 * abs(bound)
    assert values.mean() < EVIDENCE


@pytest.mark.parametrize("resampling", ["multinomial", "systematic", "none"])
@pytest.mark.parametrize(("proposal", "steps"), [("filtering", T), ("prior", 4)])
def test_the_estimate_of_the_evidence_is_unbiased(both, proposal, steps, resampling):
    rows, x = 20_000, observations(steps)
    found, state = fitted(both, "pyro", proposal, rows)
    filtered = found.filter(
        state, batch_of(x, rows), seed=3, particles=8, filtering=Filtering(resampling, threshold=0.7)
    )
    ratio = np.exp(filtered.log_evidence - kalman(x))
    assert abs(ratio.mean() - 1) < 4 * ratio.std() / math.sqrt(rows)


@pytest.mark.parametrize("filtering", [Filtering(), Filtering("systematic", 1.0), Filtering("none")], ids=str)
def test_both_engines_filter_alike(both, filtering):
    batch = batch_of(observations(), 4)
    found = []
    for engine in ENGINES:
        fit, state = fitted(both, engine, "filtering", 4)
        found.append(fit.filter(state, batch, seed=1, particles=6, filtering=filtering))
    assert found[0].resampled.any() == (filtering.resampling != "none")
    for name, one, other in zip(found[0]._fields, *found, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-10, err_msg=name)


@pytest.mark.parametrize("engine", ENGINES)
def test_without_resampling_it_is_iwae_and_alone_the_elbo(both, engine):
    """Step by step in the filter, and at once in the program: the same log p(x, z) to the last digits."""
    found, state = fitted(both, engine, "filtering", 2)
    batch = batch_of(observations(), 2)
    for size in (1, 5):
        filtered = found.filter(state, batch, seed=2, particles=size, filtering=Filtering("none"))
        paths = {"z": filtered.latents.transpose(1, 0, 2, 3)}
        joint = found.log_joint(state, batch, paths)
        np.testing.assert_allclose(filtered.log_likelihood + filtered.log_prior, joint, rtol=1e-11)
        weights = joint - filtered.log_posterior
        iwae = np.logaddexp.reduce(weights, 0) - math.log(size)
        np.testing.assert_allclose(filtered.log_evidence, iwae, rtol=1e-11)
    alone = found.filter(state, batch, seed=2, particles=1, filtering=Filtering(threshold=1.0))
    np.testing.assert_array_equal(
        alone.log_evidence, found.filter(state, batch, seed=2, particles=1, filtering=Filtering("none")).log_evidence
    )


@pytest.mark.parametrize("engine", ENGINES)
def test_padding_changes_nothing(both, engine):
    found, state = fitted(both, engine, "smoothing", 2)
    short, long = batch_of(observations(), 2), batch_of(observations(), 2, pad=5)
    for filtering in (Filtering(threshold=0.9), Filtering("none")):
        one, other = (
            found.filter(state, batch, seed=2, particles=4, filtering=filtering).log_evidence for batch in (short, long)
        )
        np.testing.assert_allclose(one, other, rtol=1e-12)
    one, other = (found.terms(state, batch, seed=2).elbo() for batch in (short, long))
    np.testing.assert_allclose(one, other, rtol=1e-12)


@pytest.mark.parametrize("engine", ENGINES)
def test_where_nothing_is_observed_it_is_the_model_that_draws(both, engine):
    """Beyond the data: mean and variance of the forecast against the Kalman filter's."""
    x, ahead = observations(), 3
    found, state = fitted(both, engine, "filtering", 1)
    batch = batch_of(np.concatenate([x, np.zeros(ahead)]), 1)
    observed = np.arange(T + ahead)[None] < T
    size = 40_000
    filtered = found.filter(state, batch, seed=0, particles=size, filtering=Filtering(), observed=observed)
    weights = np.exp(filtered.log_weight[:, 0] - np.logaddexp.reduce(filtered.log_weight[:, 0]))
    mean, variance = 0.0, 0.0
    for one in x:
        mean, variance = A * mean, A * A * variance + Q
        gain = variance / (variance + R)
        mean, variance = mean + gain * (one - mean), variance * (1 - gain)
    for step in range(ahead):
        mean, variance = A * mean, A * A * variance + Q
        drawn = filtered.data[T + step, :, 0, 0]
        centre = weights @ drawn
        effective = 1 / (weights**2).sum()
        assert abs(centre - mean) < 5 * math.sqrt((variance + R) / effective)
        spread = weights @ (drawn - centre) ** 2
        assert abs(spread / (variance + R) - 1) < 5 * math.sqrt(2 / effective)
    known = found.filter(state, batch_of(x, 1), seed=0, particles=size, filtering=Filtering())
    assert abs(known.log_evidence[0] - filtered.log_evidence[0]) < 0.1


def pyro_value(fit, state, x, latents, uniform, spec):
    """log Ẑ + score of every row, and the gradient of each with respect to log q."""
    step = PAIR.steps.step(fit.ppl, fit.networks)
    log_q = state.parameters["dynamics.log_state_variance"]
    noise = {"latents": torch.as_tensor(latents), "ancestors": torch.as_tensor(uniform)}
    proposal = PAIR.steps.proposal(fit.ppl, fit.networks, step)
    mask = torch.ones(x.shape[:2], dtype=torch.bool)
    found = pyro_filtered(step, proposal, torch.as_tensor(x), mask, particles=2, spec=spec, noise=noise)
    value = found.log_evidence + found.score
    gradients = [torch.autograd.grad(one, log_q, retain_graph=True)[0].item() for one in value]
    return value.detach().numpy(), np.array(gradients), found.log_weight.detach().numpy()


def numpyro_value(fit, state, x, latents, uniform, spec):
    def value(log_q):
        modules = fit.modules(state.parameters | {"dynamics.log_state_variance": log_q})
        ppl = NumPyroPPL(modules, register=False, dtype=fit.dtype)
        with handlers.seed(rng_seed=0):
            step = PAIR.steps.step(ppl, modules)
            found = numpyro_filtered(
                step,
                PAIR.steps.proposal(ppl, modules, step),
                x,
                np.ones(x.shape[:2], bool),
                particles=2,
                spec=spec,
                noise={"latents": latents, "ancestors": uniform},
                key=jax.random.key(0),
            )
        return found.log_evidence + found.score, found.log_weight

    log_q = state.parameters["dynamics.log_state_variance"]
    (values, log_weight), gradients = value(log_q), jax.jacobian(lambda one: value(one)[0])(log_q)
    return np.asarray(values), np.asarray(gradients)[:, 0], np.asarray(log_weight)


VALUES = {"pyro": pyro_value, "numpyro": numpyro_value}


@pytest.mark.parametrize("engine", ENGINES)
def test_the_score_of_ancestors_makes_the_gradient_right(both, engine):
    """Two steps and two particles have four choices of ancestors: the expectation over them is a sum, at fixed ε."""
    latents = np.random.default_rng(0).standard_normal((2, 2, 1, 1))
    x = np.array([0.8, -1.1]).reshape(2, 1, 1)
    fit, state = fitted(both, engine, "prior", 4)

    def at(log_q, gradient):
        here = fit.load_weights(state, fit.weights(state) | {"dynamics.log_state_variance": np.array([log_q])})
        spec = Filtering("multinomial", 1.0, gradient)
        single = np.full((1, 2, 1), 0.5)
        _, _, log_weight = VALUES[engine](fit, here, x[:1], latents[:1], single, spec)
        share = np.exp(log_weight[:, 0] - np.logaddexp.reduce(log_weight[:, 0]))
        middle = np.array([share[0] / 2, share[0] + share[1] / 2])
        choices = [(i, j) for i in range(2) for j in range(2)]
        uniform = np.full((2, 2, 4), 0.5)
        uniform[0] = np.array([[middle[i], middle[j]] for i, j in choices]).T
        rows = SimpleNamespace(x=np.tile(x, (1, 4, 1)), latents=np.tile(latents, (1, 1, 4, 1)))
        values, gradients, _ = VALUES[engine](fit, here, rows.x, rows.latents, uniform, spec)
        chance = np.array([share[i] * share[j] for i, j in choices])
        return chance @ values, chance @ gradients

    start, step = math.log(Q), 1e-5
    slope = (at(start + step, "biased")[0] - at(start - step, "biased")[0]) / (2 * step)
    assert at(start, "reinforce")[1] == pytest.approx(slope, rel=1e-6)
    assert abs(at(start, "biased")[1] - slope) > 1e-3
    assert abs(at(start, "none")[1] - at(start, "biased")[1]) > 1e-3


@pytest.mark.parametrize("engine", ENGINES)
def test_as_an_objective_it_trains_and_reports_the_evidence(both, engine):
    rows, divergence = 16, FIVO(particles=4)
    found, state = fitted(both, engine, "filtering", rows, divergence=divergence)
    batch = batch_of(observations(), rows)
    terms = found.terms(state, batch, seed=0, particles=4)
    known = found.filter(state, batch, seed=0, particles=4, filtering=divergence.filtering)
    np.testing.assert_allclose(divergence.loss(terms, 1.0), -known.log_evidence, rtol=1e-12)
    for number in range(2):
        state, info = found.step(state, [batch], both.control(number, rate=1e-3))
    assert np.isfinite(float(info["objective"]))
    assert -40 < -float(info["objective"]) / rows < EVIDENCE + 1


def test_a_pair_without_steps_cannot_be_filtered(both):
    pair = PAIRS["vae"]
    chosen = both.program("pyro", pair, pair.realisable(pair.model_spec(), pair.guide_spec(), 3), data_size=2)
    batch = {"x": np.zeros((2, 3)), "weight": np.ones(2, np.float32), "index": np.arange(2, dtype=np.int32)}
    state = chosen.init(batch)
    with pytest.raises(BadInput, match="has no steps"):
        chosen.filter(state, batch, seed=0, particles=2, filtering=Filtering())
