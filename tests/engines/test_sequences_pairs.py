"""The pairs of sequences on both engines: equal terms and gradients, causality, padding, order; DMM and SRNN by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from numpyro.primitives import Messenger as NumPyroMessenger
from pyro.poutine.messenger import Messenger as PyroMessenger
from scipy import stats
from scipy.special import expit, softplus

from guidebook.engines.filtering import Filtering
from guidebook.engines.numpyro.analytic import peel
from guidebook.guides import PAIRS
from guidebook.inference import IWAE, KL
from guidebook.inference.recipe import parse

pytestmark = pytest.mark.usefixtures("_float64")
D, Z, T, S = 3, 2, 4, 2
LENGTHS = np.array([4, 2, 1])
B = len(LENGTHS)

GUIDE = {"encoder": {"hidden": [3]}, "features": 4, "posterior": {"initial_scale": 0.8}}
TABLES = {
    "vrnn": (
        {
            "prior": {"dim": Z, "hidden": [3]},
            "inputs": {"hidden": [3]},
            "latents": {"hidden": [3]},
            "features": 3,
            "decoder": {"hidden": [4]},
            "cell": {"kind": "gru", "hidden": 4},
        },
        GUIDE | {"backward": {"kind": "gru", "hidden": 3}},
    ),
    "srnn": (
        {"prior": {"dim": Z, "hidden": [3]}, "recurrent": {"hidden": 4}, "decoder": {"hidden": [4]}},
        GUIDE | {"backward": {"kind": "gru", "hidden": 3}},
    ),
    "dmm": (
        {"prior": {"dim": Z, "hidden": 3}, "emitter": {"hidden": [4], "activation": "tanh"}},
        {"backward": {"kind": "lstm", "hidden": 3}, "posterior": {"initial_scale": 0.8}},
    ),
}
SETTINGS = [
    ("vrnn", "filtering", {"residual": True}),
    ("srnn", "smoothing", {"residual": True}),
    ("srnn", "filtering", {"residual": False}),
    ("srnn", "prior", {}),
    ("dmm", "smoothing", {}),
    ("dmm", "filtering", {}),
    ("dmm", "prior", {}),
]
EVERY = pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: "-".join(setting[:2]))
LEARNED = pytest.mark.parametrize(
    "setting", [SETTINGS[0], SETTINGS[1], SETTINGS[4]], ids=lambda setting: "-".join(setting[:2])
)


def chosen(setting, likelihood=None):
    name, proposal, more = setting
    model, guide = TABLES[name]
    model = model | ({"likelihood": likelihood} if likelihood else {})
    pair = PAIRS[name]
    spec = pair.guide_spec.model_validate(guide | more | {"proposal": proposal})
    return pair, pair.realisable(pair.model_spec.model_validate(model), spec, D)


def batch_of(x, lengths=LENGTHS):
    rows, steps = x.shape[:2]
    return {
        "x": x.astype(float),
        "mask": np.arange(steps) < np.asarray(lengths)[:, None],
        "lengths": np.asarray(lengths),
        "weight": np.ones(rows, np.float32),
        "index": np.arange(rows, dtype=np.int32),
    }


def notes(seed=0, steps=T):
    return np.random.default_rng(seed).integers(0, 2, (B, steps, D))


class _InPyro(PyroMessenger):
    """ε (S, T, B, Z) of the latents of a path. Around all else, so that the particles' plate is already there."""

    def __init__(self, noise):
        super().__init__()
        self.noise = noise

    def _pyro_sample(self, msg):
        if msg["name"] == "z" and not msg["is_observed"] and msg["value"] is None:
            msg["fn"].noise = torch.as_tensor(self.noise)


class _InNumPyro(NumPyroMessenger):
    def __init__(self, noise):
        super().__init__()
        self.noise = noise

    def process_message(self, msg):
        if msg["type"] == "sample" and msg["name"] == "z" and not msg["is_observed"] and msg["value"] is None:
            peel(msg["fn"])[0].noise = self.noise


def started(both, engine, pair, networks, batch, seed=3, **settings):
    """The pair on an engine with weights that all matter, the same on both."""
    program = both.program(engine, pair, networks, data_size=B, **settings)
    state = program.init(batch)
    rng, weights = np.random.default_rng(seed), program.weights(state)
    moved = {name: weights[name] + rng.normal(scale=0.3, size=weights[name].shape) for name in sorted(weights)}
    return program, program.load_weights(state, moved)


def step(both, engine, pair, networks, batch, noise, **settings):
    """Gradients and the step's Info at the draws loc + scale · noise (S, T, B, Z), through which they pass."""
    program, state = started(both, engine, pair, networks, batch, **settings)
    with {"pyro": _InPyro, "numpyro": _InNumPyro}[engine](noise):
        return both.gradients(program, state, batch)


def assert_same(ours, theirs, **tolerance):
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_allclose(
            ours[name], theirs[name], err_msg=name, **({"rtol": 1e-8, "atol": 1e-11} | tolerance)
        )


def check_parity(both, pair, networks, batch, divergence):
    found = []
    for engine in both.engines:
        program, state = started(both, engine, pair, networks, batch)
        terms = program.terms(state, batch, seed=1, particles=S)
        tables = {
            f"{table}/{site}": value
            for table in ("log_likelihood", "log_prior", "log_posterior", "kl")
            for site, value in getattr(terms, table).items()
        }
        tables["log_weights"] = program.log_weights(state, batch, seed=1, particles=3, rows=2 * B)
        tables |= program.draws(state, batch, seed=1, particles=S)
        filtered = program.filter(state, batch, seed=1, particles=3, filtering=Filtering())
        found.append(tables | {"evidence": filtered.log_evidence, "latents": filtered.latents})
    assert_same(*found)
    assert found[0]["z"].shape == (S, B, T, Z)
    noise = np.random.default_rng(2).standard_normal((S, T, B, Z))
    (ours, info), (theirs, other) = (
        step(both, engine, pair, networks, batch, noise, divergence=divergence) for engine in both.engines
    )
    assert_same(ours, theirs)
    assert_same(info, other)
    return ours


@EVERY
def test_both_engines_agree(both, setting):
    gradients = check_parity(both, *chosen(setting), batch_of(notes()), KL(particles=S))
    assert min(np.abs(value).max() for value in gradients.values()) > 0


@pytest.mark.parametrize(
    ("setting", "kind"),
    [
        (SETTINGS[0], "gaussian"),
        (SETTINGS[0], "strokes"),
        (SETTINGS[1], "gaussian_mixture"),
        (SETTINGS[4], "gaussian_mixture"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_both_engines_agree_on_other_data(both, setting, kind):
    x = np.random.default_rng(0).normal(size=(B, T, D))
    x[..., 0] = x[..., 0] > 0
    likelihood = {"kind": kind, "scale": "softplus"} | ({} if kind == "gaussian" else {"components": 2})
    check_parity(both, *chosen(setting, likelihood), batch_of(x), IWAE(particles=S))


def z_of(seed=5, particles=S):
    return np.random.default_rng(seed).normal(size=(particles, T, B, Z))


def by_step(both, engine, pair, networks, x, z):
    """log p(x_t | …) and log p(z_t | …) at these latents, (S, B, T), from programs of one step more each time."""
    particles = len(z)
    found = {"log_likelihood": [], "log_prior": []}
    program, state = started(both, engine, both.drawing(engine, pair, {"z": z}), networks, batch_of(x))
    for upto in range(T + 1):
        terms = program.terms(state, batch_of(x, [upto] * B), seed=0, particles=particles)
        found["log_likelihood"].append(terms.log_likelihood["x"])
        found["log_prior"].append(terms.log_prior["z"])
    return tuple(np.diff(np.array(found[table]), axis=0).transpose(1, 2, 0) for table in found)


@LEARNED
@pytest.mark.parametrize("edited", [0, 2])
def test_a_step_reads_the_data_before_it_only(both, engine, setting, edited):
    """x_t moves no term before it, nor p(z_t | …); of the terms after it all in the VRNN and the SRNN, none in the DMM."""
    pair, networks = chosen(setting)
    x = notes()
    other = x.copy()
    other[:, edited] = 1 - other[:, edited]
    (likelihood, prior), (likelihood_, prior_) = (
        by_step(both, engine, pair, networks, data, z_of()) for data in (x, other)
    )
    np.testing.assert_allclose(likelihood_[..., :edited], likelihood[..., :edited], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(prior_[..., : edited + 1], prior[..., : edited + 1], rtol=1e-9, atol=1e-12)
    moved = [np.abs(a - b)[..., edited + 1 :] for a, b in ((likelihood, likelihood_), (prior, prior_))]
    if setting[0] == "dmm":
        assert max(part.max() for part in moved) < 1e-9
    else:
        assert min(part.min() for part in moved) > 1e-9


@LEARNED
def test_a_step_is_a_distribution_of_its_data(both, engine, setting):
    """Σ over all x_t of p(x_t | z_t, x_<t) is 1: no part of the law reads x_t."""
    pair, networks = chosen(setting)
    total = 0.0
    for values in itertools.product((0, 1), repeat=D):
        x = notes()
        x[:, T - 1] = values
        total = total + np.exp(by_step(both, engine, pair, networks, x, z_of())[0][..., T - 1])
    np.testing.assert_allclose(total, 1, rtol=1e-9)


@EVERY
def test_padding_changes_neither_bound_nor_gradient(both, engine, setting):
    pair, networks = chosen(setting)
    x, noise = notes(), np.random.default_rng(1).standard_normal((S, T, B, Z))
    wider = np.full((B, T + 2, D), 7.0)
    wider[:, :T] = np.where(batch_of(x)["mask"][..., None], x, 7.0)
    more = np.concatenate([noise, np.full((S, 2, B, Z), 5.0)], 1)
    ours, theirs = (
        step(both, engine, pair, networks, batch_of(data), draws, divergence=IWAE(particles=S))
        for data, draws in ((x, noise), (wider, more))
    )
    for one, other in zip(ours, theirs, strict=True):
        assert_same(one, other, rtol=1e-9)
    program, state = started(both, engine, pair, networks, batch_of(x))
    evidence = [
        program.filter(state, batch_of(data), seed=0, particles=1, filtering=Filtering()).log_likelihood
        for data in (x, np.where(batch_of(x)["mask"][..., None], x, 7.0))
    ]
    np.testing.assert_allclose(*evidence, rtol=1e-9)


@LEARNED
def test_the_order_of_sequences_and_of_particles_is_nothing(both, engine, setting):
    pair, networks = chosen(setting)
    x, noise = notes(), np.random.default_rng(1).standard_normal((S, T, B, Z))
    order = np.array([2, 0, 1])
    plain, turned, swapped = (
        step(both, engine, pair, networks, batch, draws, divergence=IWAE(particles=S))
        for batch, draws in (
            (batch_of(x), noise),
            (batch_of(x[order], LENGTHS[order]), noise[:, :, order]),
            (batch_of(x), noise[::-1].copy()),
        )
    )
    for other in (turned, swapped):
        assert_same(plain[0], other[0], rtol=1e-9)
        assert_same(plain[1], other[1], rtol=1e-9)
    z = z_of()
    rows, others = (
        np.stack(by_step(both, engine, pair, networks, data, latents))
        for data, latents in ((x, z), (x[order], z[::-1][:, :, order]))
    )
    np.testing.assert_allclose(rows[:, ::-1][:, :, order], others, rtol=1e-9, atol=1e-12)


@EVERY
def test_step_by_step_is_all_at_once(both, engine, setting):
    """A filter of one particle that is told which steps are seen forms every state from single steps."""
    pair, networks = chosen(setting)
    batch = batch_of(notes())
    program, state = started(both, engine, pair, networks, batch)
    together = program.log_weights(state, batch, seed=4, particles=1, rows=B)[0]
    for observed in (None, batch["mask"]):
        found = program.filter(state, batch, seed=4, particles=1, filtering=Filtering(), observed=observed)
        np.testing.assert_allclose(found.log_evidence, together, rtol=1e-9)


@LEARNED
def test_what_is_drawn_is_read_by_what_follows(both, engine, setting):
    """Forecasts and gaps: with x_2 unknown, all that follows is of the particles' own x_2, as if it had been seen."""
    pair, networks = chosen(setting)
    x, many = notes(), 3
    program, state = started(both, engine, pair, networks, batch_of(x, [T] * B))
    seen = np.ones((B, T), bool)
    seen[:, 1] = False
    batch = batch_of(np.where(seen[..., None], x, np.nan), [T] * B)
    spec = Filtering("none")
    found = program.filter(state, batch, seed=0, particles=many, filtering=spec, observed=seen)
    assert (found.data[[0, 2, 3]] == x.transpose(1, 0, 2)[[0, 2, 3], None]).all()
    assert len(np.unique(found.data[1].reshape(-1, D), axis=0)) > 1
    for particle in range(many):
        own = found.data[:, particle].transpose(1, 0, 2)
        z = found.latents[None, :, particle]
        likelihood, prior = by_step(both, engine, pair, networks, own, z)
        kept = [0, 2, 3]
        np.testing.assert_allclose(found.log_likelihood[particle], likelihood[0][:, kept].sum(-1), rtol=1e-8)
        np.testing.assert_allclose(found.log_prior[particle], prior[0][:, kept].sum(-1), rtol=1e-8)


def mlp(weights, name, x, activation):
    layers = sum(key.startswith(f"{name}.weight_") for key in weights)
    for layer in range(layers):
        x = weights[f"{name}.weight_{layer}"] @ (activation(x) if layer else x) + weights[f"{name}.bias_{layer}"]
    return x


def srnn_by_hand(weights, x, z):
    """Σ_t log p(x_t, z_t | x_<t, z_<t) of one sequence."""
    d, before, total = np.zeros(4), np.zeros(Z), 0.0
    for x_t, z_t in zip(x, z, strict=True):
        loc, log_variance = np.split(mlp(weights, "prior", np.concatenate([d, before]), np.tanh), 2)
        total += stats.norm(loc, np.exp(log_variance / 2)).logpdf(z_t).sum()
        logits = mlp(weights, "decoder", np.concatenate([z_t, d]), lambda v: np.maximum(v, 0))
        total += stats.bernoulli(expit(logits)).logpmf(x_t).sum()
        given = weights["recurrent.weight_ih"] @ x_t + weights["recurrent.bias_ih"]
        own = weights["recurrent.weight_hh"] @ d + weights["recurrent.bias_hh"]
        (r, u, n), (own_r, own_u, own_n) = np.split(given, 3), np.split(own, 3)
        u = expit(u + own_u)
        d, before = (1 - u) * np.tanh(n + expit(r + own_r) * own_n) + u * d, z_t
    return total


def dmm_by_hand(weights, x, z):
    before, total = weights["prior.first"], 0.0
    own = {name.removeprefix("prior."): value for name, value in weights.items() if name.startswith("prior.")}
    for x_t, z_t in zip(x, z, strict=True):
        hidden = np.maximum(own["weight_in"] @ before + own["bias_in"], 0)
        gate = expit(own["weight_gate"] @ hidden[:3] + own["bias_gate"])
        proposed = own["weight_proposed"] @ hidden[3:] + own["bias_proposed"]
        linear = (np.eye(Z) + own["weight_loc"]) @ before + own["bias_loc"]
        scale = softplus(own["weight_scale"] @ np.maximum(proposed, 0) + own["bias_scale"])
        total += stats.norm((1 - gate) * linear + gate * proposed, scale).logpdf(z_t).sum()
        total += stats.bernoulli(expit(mlp(weights, "emitter", z_t, np.tanh))).logpmf(x_t).sum()
        before = z_t
    return total


@pytest.mark.parametrize(("name", "by_hand"), [("srnn", srnn_by_hand), ("dmm", dmm_by_hand)])
def test_the_joint_is_the_one_written_down(both, engine, name, by_hand):
    more = {"prior": TABLES[name][0]["prior"] | ({"activation": "tanh"} if name == "srnn" else {})}
    pair = PAIRS[name]
    model = pair.model_spec.model_validate(
        TABLES[name][0] | more | ({"decoder": {"hidden": [4], "activation": "relu"}} if name == "srnn" else {})
    )
    networks = pair.realisable(model, pair.guide_spec.model_validate(TABLES[name][1]), D)
    batch = batch_of(notes())
    program, state = started(both, engine, pair, networks, batch)
    z = z_of()
    found = program.log_joint(state, batch, {"z": z})
    weights = program.weights(state)
    for s, b in itertools.product(range(S), range(B)):
        length = LENGTHS[b]
        exact = by_hand(weights, batch["x"][b, :length], z[s, :length, b])
        np.testing.assert_allclose(found[s, b], exact, rtol=1e-9)


def test_a_dmm_starts_as_a_random_walk_and_at_the_mean(both, engine):
    pair = PAIRS["dmm"]
    model = pair.model_spec.model_validate({"prior": {"dim": Z, "hidden": 3}})
    program = both.program(engine, pair, pair.realisable(model, pair.guide_spec(), D), data_size=B)
    state = program.init(batch_of(notes()))
    weights = program.weights(state)
    assert not weights["prior.weight_loc"].any()
    mean = np.array([0.1, 0.5, 0.9])
    moved = model.started(weights, mean)["emitter.bias_2"] - weights["emitter.bias_2"]
    np.testing.assert_allclose(expit(moved), mean)


@pytest.mark.parametrize("name", ["dmm", "srnn"])
def test_recipes_read_them(name):
    tables = {"pair": name, "guide": {"proposal": "filtering"}, "model": {"prior": {"dim": 5}}, "data": {}}
    recipe = parse(tables)
    assert (recipe.model.prior.dim, recipe.guide.proposal) == (5, "filtering")
