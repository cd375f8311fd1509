"""Latents that hang on the path before them: score and path of log q, states that hold data alone, and who is resampled."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from guidebook.engines.filtering import Filtering, common
from guidebook.engines.protocol import Objective
from guidebook.engines.terms import Sides
from guidebook.guides import PAIRS, sequence_pair
from guidebook.inference import IWAE, KL
from guidebook.inference.divergences import FIVO
from guidebook.models import MLP
from guidebook.models.sequence import Step

pytestmark = pytest.mark.usefixtures("_float64")
PAIR = PAIRS["linear_gaussian"]
ROWS, STEPS = 2, 6
X = np.random.default_rng(1).normal(size=(ROWS, STEPS))
GAINS = {"by_state": 0.7, "by_data": 0.4, "log_variance": -0.6}
"""q(z_t | z_{t-1}, x_t) = N(by_state · z_{t-1} + by_data · x_t, exp(log_variance))."""


def batch_of(x, lengths=None):
    rows, steps = x.shape[:2]
    lengths = np.full(rows, steps) if lengths is None else np.asarray(lengths)
    return {
        "x": x.reshape(rows, steps, -1),
        "mask": np.arange(steps) < lengths[:, None],
        "lengths": lengths.astype(np.int32),
        "weight": np.ones(rows, np.float32),
        "index": np.arange(rows, dtype=np.int32),
    }


def linear(both, engine, divergence, batch, pair=PAIR):
    networks = PAIR.realisable(PAIR.model_spec(), PAIR.guide_spec(proposal="filtering"), 1)
    program = both.program(engine, pair, networks, data_size=len(batch["x"]), divergence=divergence)
    state = program.init(batch)
    weights = {f"gains.{name}": np.array([value]) for name, value in GAINS.items()}
    return program, program.load_weights(state, program.weights(state) | weights)


class Field:
    """The guide's side minimises one field of the terms, log q in parts."""

    def __init__(self, field):
        self.field = field

    def loss(self, terms, weight):
        value = terms.mean(getattr(terms, self.field)["z"])
        return Sides(value, 0.0 * value, value)

    def objective(self):
        return Objective(self.loss, 1, frozenset({self.field}))


@pytest.mark.parametrize("field", ["score", "path"])
def test_score_and_path_reach_through_the_steps_before(both, engine, field):
    """Of a reparameterised path log q is −Σ (ε² + log_variance) / 2: all parts of its gradient are known."""
    batch = batch_of(X)
    z = np.random.default_rng(2).normal(size=(ROWS, STEPS))
    program, state = linear(both, engine, Field(field), batch)
    z = program.draws(state, batch, seed=0, particles=1)["z"][0, ..., 0]
    program.pair = both.drawing(engine, PAIR, {"z": z.T[..., None]}) if field == "score" else PAIR
    before = np.concatenate((np.zeros((ROWS, 1)), z[:, :-1]), 1)

    def score(z, before):
        off = (z - GAINS["by_state"] * before - GAINS["by_data"] * X) / math.exp(GAINS["log_variance"])
        squares = off**2 * math.exp(GAINS["log_variance"])
        return [(off * before).sum(1).mean(), (off * X).sum(1).mean(), (0.5 * (squares - 1)).sum(1).mean()]

    if field == "path":  # its own draw, whatever it is: score and path add up to the gradient of the whole
        found, _ = both.gradients(program, state, batch)
        program, state = linear(both, engine, Field("score"), batch)
        other, _ = both.gradients(program, state, batch)
        whole = {"by_state": 0.0, "by_data": 0.0, "log_variance": -0.5 * STEPS}
        for name, value in whole.items():
            assert found[f"gains.{name}"][0] + other[f"gains.{name}"][0] == pytest.approx(value, abs=1e-9)
        return
    found, _ = both.gradients(program, state, batch)
    for name, value in zip(GAINS, score(z, before), strict=True):
        assert found[f"gains.{name}"][0] == pytest.approx(value, rel=1e-8)


def test_dreg_of_one_path_is_stl(both, engine):
    """Σ w² / (Σ w)² = 1 for one particle; and STL's expectation is the ELBO's gradient, which has no score."""
    batch = batch_of(np.tile(X[:1], (4000, 1)))
    found = []
    for divergence in (KL(estimator="sampled"), IWAE(particles=1, estimator="dreg")):
        program, state = linear(both, engine, divergence, batch)
        found.append(both.gradients(program, state, batch)[0])
    for name in GAINS:
        one, other = (float(gradient[f"gains.{name}"][0]) for gradient in found)
        assert one == pytest.approx(other, abs=0.15), name


class Holding(Step):
    """h_t is (z_{t-1}, x_{t-1}): one part of the state is data alone."""

    dim = 1

    def __init__(self, ppl, nets):
        self.ppl = ppl

    def start(self, shape):
        return self.ppl.zeros((*shape, 1)), self.ppl.zeros((*shape, 1))

    def inputs(self, x, h):
        return x

    def prior(self, h):
        return self.ppl.dist.Normal(0.5 * h[0] + 0.2 * h[1], 0.8).to_event(1)

    def emission(self, h, v):
        return self.ppl.dist.Normal(v + 0.3 * h[1], 0.5).to_event(1)

    def next(self, h, v, inputs):
        return v, inputs


class Proposal:
    def __init__(self, ppl, nets, step):
        self.ppl, self.net = ppl, ppl.module("proposal", nets["proposal"])

    def reading(self, x, mask, h):
        reading, self.rest = self.net.project(x)
        return reading

    def law(self, h, reading=None):
        out = self.rest(h[0], reading)
        return self.ppl.dist.Normal(out[..., :1], self.ppl.sigmoid(out[..., 1:])).to_event(1)


HOLDING = sequence_pair("holding", Holding, Proposal, {"proposal": MLP(inputs=2, outputs=2, hidden=())})


@pytest.mark.parametrize("divergence", [IWAE(particles=3), FIVO(particles=3)], ids=["iwae", "fivo"])
def test_a_state_may_hold_data_alone(both, engine, divergence):
    batch = batch_of(X)
    program = both.program(engine, HOLDING, HOLDING.realisable(None, None), data_size=ROWS, divergence=divergence)
    state, info = program.step(program.init(batch), [batch], both.control(rate=0.1))
    assert np.isfinite(float(info["objective"]))
    assert np.isfinite(program.log_weights(state, batch, seed=0, particles=4, rows=8)).all()


def test_the_gradient_past_ancestors_is_a_matter_of_each_row(both):
    """Rows that are resampled at different steps, at the same noise: a detached row is detached alone."""
    batch = batch_of(np.concatenate((X, 4 * X[:1])), [STEPS, 3, STEPS])
    spec, particles = Filtering("multinomial", 0.5, "none"), 4
    program, state = linear(both, "pyro", FIVO(particles=particles, gradient="none"), batch)
    gains = program.networks["gains"]
    filtered = program._filtered(program.arrays(batch), particles, spec, 7)
    assert len({tuple(row) for row in filtered.resampled.T.tolist()}) > 1
    filtered.log_evidence.sum().backward()
    ours = {name: float(getattr(gains, name).grad) for name in GAINS}
    program, state = linear(both, "numpyro", FIVO(particles=particles, gradient="none"), batch)
    noise = {name: jnp.asarray(value) for name, value in common(7, (STEPS, particles, 3), 1).items()}

    def evidence(parameters):
        arrays = program.arrays(batch)
        return program._filtered(parameters, arrays, jax.random.key(0), noise, None, particles, spec).log_evidence.sum()

    theirs = jax.grad(evidence)(state.parameters)
    for name, value in ours.items():
        assert value == pytest.approx(float(theirs[f"gains.{name}"][0]), rel=1e-8), name


def test_a_row_that_ended_is_not_resampled(both, engine):
    """At threshold 1 every real step but a row's last is followed by resampling, whatever stands after it."""
    lengths = np.array([STEPS, 3])
    batch = batch_of(np.concatenate((X, np.zeros((ROWS, 5))), 1), lengths)
    program, state = linear(both, engine, KL(), batch)
    found = program.filter(state, batch, seed=0, particles=8, filtering=Filtering(threshold=1.0))
    expected = np.arange(STEPS + 5)[:, None] < lengths - 1
    np.testing.assert_array_equal(found.resampled, expected)
