"""A step that moves one side of a pair: the other's weights and optimiser slots stay as they are, to the bit."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import numpyro
import pyro
import pytest
import torch

from guidebook.engines.protocol import OptimiserSpec
from guidebook.guides import Pair
from guidebook.inference import KL
from guidebook.models import MLP

pytestmark = pytest.mark.usefixtures("_float64")
D, Z, B = 3, 2, 4
NOISE = {"z": np.random.default_rng(1).normal(size=(B + 1, Z))}


def model(ppl, batch, nets):
    decoder = ppl.module("decoder", nets["decoder"])
    with ppl.plate("data", batch.data_size, subsample=batch.index), ppl.mask(batch.real):
        z = ppl.sample("z", ppl.dist.Normal(ppl.zeros((Z,)), 1.0).to_event(1))
        ppl.sample("x", ppl.dist.Normal(decoder(z), 0.7).to_event(1), obs=batch.x)


def guide(ppl, batch, nets):
    encoder = ppl.module("encoder", nets["encoder"])
    with ppl.plate("data", batch.data_size, subsample=batch.index), ppl.mask(batch.real):
        ppl.sample("z", ppl.dist.Normal(encoder(batch.x), 0.8).to_event(1))


NETWORKS = {"decoder": MLP(inputs=Z, outputs=D, hidden=()), "encoder": MLP(inputs=D, outputs=Z, hidden=())}
PAIR = Pair(model=model, guide=guide, networks=NETWORKS)


def fitted(both, engine, **settings):
    batch = both.rows({"x": np.random.default_rng(0).normal(size=(B, D))}, filler=1)
    program = both.program(engine, both.replaying(engine, PAIR, NOISE), data_size=B, **settings)
    return program, program.init(batch), batch


@pytest.mark.parametrize("divergence", [KL(), KL(estimator="stl")], ids=["one loss", "two losses"])
@pytest.mark.parametrize("side", ["model", "guide"])
@pytest.mark.parametrize("batches", [1, 2])
def test_the_other_side_stays(both, engine, side, divergence, batches):
    adam = {side: OptimiserSpec("adam") for side in ("model", "guide")}
    program, state, batch = fitted(both, engine, divergence=divergence, optimisers=adam)
    state, _ = program.step(state, [batch], both.control(0, rate=0.01))
    weights, slots, sides = program.weights(state), program.slots(state), program.sides(state)
    state, _ = program.step(state, [batch] * batches, both.control(1, rate=0.01)._replace(sides=(side,)))
    for name, after in program.weights(state).items():
        assert (after == weights[name]).all() == (sides[name] != side), name
    own = {"model": "decoder", "guide": "encoder"}[side]
    for name, after in program.slots(state).items():
        assert np.array_equal(after, slots[name]) == (own not in name and side not in name), name


@pytest.mark.parametrize("divergence", [KL(), KL(estimator="stl")], ids=["one loss", "two losses"])
def test_two_steps_of_one_side_from_the_same_weights_are_one_of_both(both, engine, divergence):
    program, state, batch = fitted(both, engine, divergence=divergence)
    start = program.weights(state)
    whole, info = both.gradients(program, state, batch)
    for side in ("model", "guide"):
        state = program.load_weights(program.init(batch), start)
        state, told = program.step(state, [batch], both.control()._replace(sides=(side,)))
        own = {name: start[name] - after for name, after in program.weights(state).items()}
        for name, of in program.sides(state).items():
            np.testing.assert_allclose(own[name], whole[name] if of == side else 0.0, rtol=1e-10, atol=1e-14)
        norms = [np.linalg.norm(whole[name]) for name, of in program.sides(state).items() if of == side]
        assert float(told["gradient_norm"]) == pytest.approx(np.linalg.norm(norms), rel=1e-10)
        assert float(told["objective"]) == pytest.approx(info["objective"], rel=1e-12)


def test_steps_of_one_side_have_noise_of_their_own(both, engine):
    """The same number of step, other draws: a guide's inner step k is not the model's step k."""
    batch = both.rows({"x": np.random.default_rng(0).normal(size=(B, D))})
    program = both.program(engine, PAIR, data_size=B)
    told = set()
    for sides in (("model", "guide"), ("model",), ("guide",), ("guide",)):
        state = program.init(batch)
        _, info = program.step(state, [batch], both.control(rate=0.0)._replace(sides=sides))
        told.add(round(float(info["objective"]), 9))
    assert len(told) == 3


@pytest.mark.parametrize("sides", [("model", "guide"), ("guide",), ("model",)])
def test_a_native_pair_moves_when_its_sides_have_losses_of_their_own(both, engine, sides):
    """z ~ N(0, 1), x ~ N(z + shift, 1), q = N(slope x, 1) at 0, z = ε: both slopes of the loss are closed."""
    ppl, array = {"pyro": (pyro, torch.as_tensor), "numpyro": (numpyro, jnp.asarray)}[engine]

    def model(batch, data_size):
        shift = ppl.param("shift", array(0.0))
        with ppl.plate("data", data_size, subsample_size=B):
            z = ppl.sample("z", ppl.distributions.Normal(0.0 * batch["x"], 1.0))
            ppl.sample("x", ppl.distributions.Normal(z + shift, 1.0), obs=batch["x"])

    def guide(batch, data_size):
        slope = ppl.param("slope", array(0.0))
        with ppl.plate("data", data_size, subsample_size=B):
            ppl.sample("z", ppl.distributions.Normal(slope * batch["x"], 1.0))

    x, noise = np.random.default_rng(0).normal(size=(2, B))
    pair = both.replaying(engine, Pair(model, guide, engine=engine), {"z": noise})
    program = both.program(engine, pair, data_size=B, divergence=KL(estimator="stl"))
    batch = both.rows({"x": x})
    state, _ = program.step(program.init(batch), [batch], both.control()._replace(sides=sides))
    moved = {"model": np.mean(x - noise), "guide": np.mean((x - noise) * x)}
    for name, side in (("shift", "model"), ("slope", "guide")):
        assert program.weights(state)[name] == pytest.approx(moved[side] * (side in sides), rel=1e-6)
