"""The RNN without a latent: by hand, alike on both engines, and filtered without an error."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from scipy.special import expit

from guidebook.engines.filtering import Filtering
from guidebook.guides import PAIRS

pytestmark = pytest.mark.usefixtures("_float64")
PAIR = PAIRS["rnn"]
D, T, H = 3, 4, 5
LENGTHS = np.array([4, 2, 1])
B = len(LENGTHS)


def started(both, engine, cell, x, likelihood="gaussian"):
    tables = {
        "inputs": {"hidden": [4], "activation": "tanh", "activate_outputs": True},
        "features": 3,
        "decoder": {"hidden": [4], "activation": "tanh"},
        "cell": {"kind": cell, "hidden": H},
    }
    scale = {"scale": "softplus"} | ({"components": 2} if likelihood == "gaussian_mixture" else {})
    model = PAIR.model_spec.model_validate(tables | {"likelihood": {"kind": likelihood, **scale}})
    program = both.program(engine, PAIR, PAIR.realisable(model, PAIR.guide_spec(), D), data_size=B)
    state, rng = program.init(x), np.random.default_rng(3)
    weights = program.weights(state)
    moved = {name: weights[name] + rng.normal(scale=0.3, size=weights[name].shape) for name in sorted(weights)}
    return program, program.load_weights(state, moved)


def batch_of(seed=0):
    return {
        "x": np.random.default_rng(seed).normal(size=(B, T, D)),
        "mask": np.arange(T) < LENGTHS[:, None],
        "lengths": LENGTHS,
        "weight": np.ones(B, np.float32),
        "index": np.arange(B, dtype=np.int32),
    }


def layers(weights, name, x, last):
    x = np.tanh(weights[f"{name}.weight_0"] @ x + weights[f"{name}.bias_0"])
    return last(weights[f"{name}.weight_1"] @ x + weights[f"{name}.bias_1"])


def lstm(weights, read, state):
    h, c = state
    gates = weights["cell.weight_inputs"] @ read + weights["cell.bias_ih"] + weights["cell.weight_hh"] @ h
    i, f, g, o = np.split(gates, 4)
    c = expit(f) * c + expit(i) * np.tanh(g)
    return expit(o) * np.tanh(c), c


def gru(weights, read, state):
    (h,) = state
    given = weights["cell.weight_inputs"] @ read + weights["cell.bias_ih"]
    own = weights["cell.weight_hh"] @ h + weights["cell.bias_hh"]
    (r, z, n), (own_r, own_z, own_n) = np.split(given, 3), np.split(own, 3)
    z = expit(z + own_z)
    return ((1 - z) * np.tanh(n + expit(r + own_r) * own_n) + z * h,)


@pytest.mark.parametrize(("cell", "parts"), [(lstm, 2), (gru, 1)], ids=["lstm", "gru"])
def test_the_likelihood_is_the_one_written_down(both, engine, cell, parts):
    batch = batch_of()
    program, state = started(both, engine, cell.__name__, batch)
    weights, found = program.weights(state), program.terms(state, batch, seed=0).log_likelihood["x"][0]
    for row, length in enumerate(LENGTHS):
        carried, total = (np.zeros(H),) * parts, 0.0
        for x in batch["x"][row, :length]:
            loc, raw = np.split(layers(weights, "decoder", carried[0], lambda v: v), 2)
            total += stats.norm(loc, np.log1p(np.exp(raw)) + 1e-4).logpdf(x).sum()
            carried = cell(weights, layers(weights, "inputs", x, np.tanh), carried)
        assert found[row] == pytest.approx(total, rel=1e-9)


@pytest.mark.parametrize(("cell", "likelihood"), [("lstm", "gaussian_mixture"), ("gru", "gaussian")])
def test_both_engines_agree(both, cell, likelihood):
    batch, found = batch_of(), []
    for engine in both.engines:
        program, state = started(both, engine, cell, batch, likelihood)
        terms = program.terms(state, batch, seed=0)
        assert (terms.log_prior, terms.log_posterior, terms.kl) == ({}, {}, {})
        filtered = program.filter(state, batch, seed=1, particles=2, filtering=Filtering())
        np.testing.assert_allclose(filtered.log_evidence, terms.log_likelihood["x"][0], rtol=1e-9)
        gradients, info = both.gradients(program, state, batch)
        found.append(gradients | {"likelihood": terms.log_likelihood["x"], "objective": info["objective"]})
    assert found[0].keys() == found[1].keys()
    for name, value in found[0].items():
        np.testing.assert_allclose(value, found[1][name], rtol=1e-8, atol=1e-11, err_msg=name)
        assert np.abs(value).max() > 0, name


def test_what_is_drawn_depends_on_what_was_drawn_before(both, engine):
    """Steps that are not observed are draws from p(x_t | h_t), whose mean the later x do not move."""
    batch, many = batch_of(), 4000
    batch["mask"][:] = True
    program, state = started(both, engine, "gru", batch)
    weights = program.weights(state)
    seen = np.arange(T) < 2
    drawn = program.filter(
        state, batch, seed=0, particles=many, filtering=Filtering("none"), observed=np.tile(seen, (B, 1))
    ).data
    np.testing.assert_array_equal(drawn[:2], np.broadcast_to(batch["x"].swapaxes(0, 1)[:2, None], drawn[:2].shape))
    for row in range(B):
        carried = (np.zeros(H),)
        for x in batch["x"][row, :2]:
            carried = gru(weights, layers(weights, "inputs", x, np.tanh), carried)
        loc, raw = np.split(layers(weights, "decoder", carried[0], lambda v: v), 2)
        scale = np.log1p(np.exp(raw)) + 1e-4
        assert (np.abs(drawn[2, :, row].mean(0) - loc) < 4.5 * scale / np.sqrt(many)).all()
        assert (np.abs(drawn[2, :, row].std(0) / scale - 1) < 4.5 / np.sqrt(2 * many)).all()
