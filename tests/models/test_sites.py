"""Sites are agreed once, beside the story (`Pair.sites`): the traces of both engines are held to it."""

from __future__ import annotations

import importlib

import jax
import numpy as np
import pytest
import torch

from guidebook import engines
from guidebook.engines.protocol import Settings
from guidebook.guides import PAIRS
from guidebook.guides.pair import NoLatents
from guidebook.inference import KL

V, ROWS = 9, 3
torch.set_num_threads(1)


def tables(pair):
    cell = {"kind": "gru", "embedding": 4, "hidden": 4} if pair.text else {"hidden": (4,)}
    cell = {"hidden": 4, "layers": 1, "heads": 2} if pair.name == "nvae" else cell
    small = {"prior": {"dim": 2}, "decoder": cell, "encoder": cell}
    return [
        spec.model_validate({name: part for name, part in small.items() if name in spec.model_fields})
        for spec in (pair.model_spec, pair.guide_spec)
    ]


def batch():
    tokens = np.array([[1, 4, 5, 2], [1, 6, 2, 0], [1, 7, 8, 2]], np.int32)
    return {
        "tokens": tokens,
        "inputs": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "lengths": np.array([3, 2, 3], np.int32),
        "weight": np.ones(ROWS, np.float32),
        "index": np.arange(ROWS, dtype=np.int32),
    }


@pytest.fixture(params=[(engine, name) for engine in engines.ENGINES for name, pair in PAIRS.items() if pair.text])
def traced(request):
    """The pair, and the sample sites of its guide's and its model's trace."""
    engine, name = request.param
    pair = PAIRS[name]
    settings = Settings(data_size=10, objective=KL().objective())
    program = engines.load(engine).Program(pair, pair.realisable(*tables(pair), V), settings)
    objective = importlib.import_module(f"guidebook.engines.{engine}.objective")
    state = program.init(batch())
    if engine == "pyro":
        with program.running(0):
            traces = objective.traces(*program.programs(), program.arrays(batch()))
    else:
        programs = program.programs(state.parameters, training=False)
        traces = objective.traces(*programs, jax.random.key(0), program.arrays(batch()))
    return pair, *map(objective.sites, traces)


def test_names_and_event_dimensions(traced):
    pair, guide, model = traced
    assert list(model) == list(pair.sites)
    assert list(guide) == [name for name in model if not model[name]["is_observed"]]
    assert (pair.guide is None) == (guide == {}) == (pair.guide_spec is NoLatents)
    for name, site in (*model.items(), *guide.items()):
        assert len(site["fn"].event_shape) == len(pair.sites[name]), name


def test_every_site_stands_in_the_data_plate(traced):
    pair, guide, model = traced
    for name, site in (*model.items(), *guide.items()):
        assert [frame.name for frame in site["cond_indep_stack"]] == [pair.plate], name
        assert tuple(site["fn"].batch_shape) == (ROWS,), name
        assert float(site["scale"]) == pytest.approx(10 / ROWS)


@pytest.mark.parametrize("name", PAIRS)
def test_the_table_of_pairs_is_whole(name):
    pair = PAIRS[name]
    assert pair.name == name
    assert pair.engine is None
    networks = pair.realisable(*tables(pair), V)
    assert networks
    assert all(network.declared for network in networks.values())
    for key, network in networks.items():
        first, again, other = (network.initial_weights(key, seed) for seed in (0, 0, 1))
        for weight, value in first.items():
            start = network.spec.layout(**network.sizes)[weight]
            assert value.shape == start.shape
            assert np.abs(value - start.start).max() <= start.scale
            np.testing.assert_array_equal(value, again[weight])
            assert (value != other[weight]).any() or start.scale == 0


@pytest.fixture(params=[(engine, name) for engine in engines.ENGINES for name, pair in PAIRS.items() if pair.text])
def likelihood(request):
    """log p(x | z) of one sentence as a function of the decoder's inputs and targets; z stays the same throughout."""
    engine, name = request.param
    pair = PAIRS[name]
    settings = Settings(data_size=10, objective=KL().objective())
    program = engines.load(engine).Program(pair, pair.realisable(*tables(pair), V), settings)
    state = program.init(batch())
    rng = np.random.default_rng(0)  # weights of order one: a dependence stands far above rounding
    drawn = {key: rng.normal(size=value.shape).astype(value.dtype) for key, value in program.weights(state).items()}
    state = program.load_weights(state, drawn)

    def likelihood(inputs, targets):
        rows = {name: np.array([row] * ROWS, np.int32) for name, row in (("inputs", inputs), ("targets", targets))}
        changed = batch() | rows | {"lengths": np.full(ROWS, len(inputs), np.int32)}
        return float(np.asarray(program.terms(state, changed, seed=0).log_likelihood["x"])[0, 0])

    return likelihood


def interaction(value):
    """How far the effect of the first choice depends on the second: 0 where log p is a sum of the two effects."""
    return abs(value(4, 6) - value(4, 7) - value(5, 6) + value(5, 7))


def test_words_hidden_from_the_decoder_leave_no_trace_in_later_words(likelihood):
    hidden = interaction(lambda first, second: likelihood([3, 3, 3], [first, second, 2]))
    kept = interaction(lambda first, second: likelihood([1, first, second], [first, second, 2]))
    assert hidden < 1e-4
    assert kept > 1e-2
