"""The NVAE with bottlenecks in its encoder's self-attention: auxiliary measures F_1, F_2 below F, and the skip of log α."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from guidebook.engines.identity import identity
from guidebook.guides import PAIRS
from guidebook.guides.encoders import MeasureBlock, VectorEncoder
from guidebook.guides.measures import DirichletProcessPosterior
from guidebook.inference.recipe import parse
from guidebook.models import BadInput
from guidebook.models.measures import NEVER, DirichletProcessPrior

NVAE, V, P, COUNT = PAIRS["nvae"], 9, 3, 2.0
SITES = ("F_1", "F_2", "F")
WORDS = ((4, 5), (6,), (7, 8, 3))
B, T = 3, 4
TABLES = ("log_likelihood", "log_prior", "log_posterior", "kl")
CLOSE = {"rtol": 1e-8, "atol": 1e-10}


def networks(stacked=2, norm="pre", places=1, **posterior):
    model, guide = {"hidden": 8, "layers": 1, "heads": 2, "dropout": 0.0}, {"hidden": 4, "layers": 1, "heads": 2}
    return NVAE.realisable(
        NVAE.model_spec.model_validate(
            {"prior": {"dim": P, "places": places, "pseudo_count": COUNT}, "decoder": model, "longest": 6}
        ),
        NVAE.guide_spec.model_validate(
            {"encoder": guide | {"norm": norm, "dropout": 0.0}, "posterior": posterior, "stacked": stacked}
        ),
        V,
    )


def begun(both, engine, nets, batch, pair=NVAE, scale=0.6, seed=0, **settings):
    """The program, and its state at weights that all matter."""
    program = both.program(engine, pair, nets, data_size=B, **settings)
    state = program.init(batch)
    rng = np.random.default_rng(seed)
    drawn = {name: scale * rng.standard_normal(value.shape) for name, value in sorted(program.weights(state).items())}
    drawn |= {name: 1 + 0.2 * value for name, value in drawn.items() if "norm" in name and "bias" not in name}
    drawn |= {name: value for name, value in program.weights(state).items() if name.startswith("length.")}
    return program, program.load_weights(state, {name: value.astype(np.float64) for name, value in drawn.items()})


def measures(program, state, batch):
    found = program.mean_measures(state, batch)
    assert set(found) == set(SITES)
    return found


def log_mean(values):
    """log of the mean of exp over the first axis, and its standard error."""
    top = values.max(0)
    weights = np.exp(values - top)
    mean = weights.mean(0)
    return top + np.log(mean), weights.std(0, ddof=1) / mean / len(values) ** 0.5


@pytest.mark.usefixtures("_float64")
@pytest.mark.parametrize("particles", [1, 2])
def test_log_alpha_adds_up_on_that_of_the_layer_below_and_is_clamped(both, engine, particles):
    rng = np.random.default_rng(0)
    h = rng.standard_normal((particles, B, T, 4)) if particles > 1 else rng.standard_normal((B, T, 4))
    below = np.array(rng.standard_normal((B, T)))
    below[0, 0] = 40.0
    shapes = DirichletProcessPosterior().layout(features=4, latent=P)
    weights = {name: rng.standard_normal(weight.shape) for name, weight in shapes.items()}
    posterior = both.realised(engine, DirichletProcessPosterior(), weights, features=4, latent=P)
    prior = both.realised(engine, DirichletProcessPrior(dim=P, pseudo_count=COUNT, loc=0.5, scale=2.0))
    array = torch.as_tensor if engine == "pyro" else jnp.asarray
    law = posterior(array(h), array(np.array([4, 2, 3])), array(below), prior=prior)
    found = both.numpy_of(law.mean_measure)
    expected = h**2 @ weights["alpha_square"] + h @ weights["alpha"] + weights["alpha_bias"] + below
    for row, length in enumerate((4, 2, 3)):
        each = found[..., row, :, :]
        np.testing.assert_allclose(each[..., 1 : 1 + length, 0], expected[..., row, :length].clip(-14, 30), **CLOSE)
        own = np.array([np.log(COUNT), *[0.5] * P, *[4.0] * P])
        np.testing.assert_allclose(each[..., 0, :], np.broadcast_to(own, each[..., 0, :].shape), **CLOSE)
        assert (each[..., 1 + length :, 0] == NEVER).all()


@pytest.mark.usefixtures("_float64")
def test_the_guide_hands_log_alpha_of_the_words_up_and_sets_the_prior_anew(both, engine):
    """With posteriors that add a constant each layer's log α is that of the one below and the constant."""
    batch = both.sentences(*WORDS)
    program, state = begun(both, engine, networks(), batch)
    weights = dict(program.weights(state))
    for name in ("posterior_2", "posterior"):
        weights |= {f"{name}.{part}": 0 * weights[f"{name}.{part}"] for part in ("alpha", "alpha_square")}
    found = measures(program, program.load_weights(state, weights), batch)
    there = np.arange(1, 1 + T) <= batch["lengths"][:, None]
    log_alpha = {site: measure[:, 1:, 0][there] for site, measure in found.items()}
    assert np.ptp(log_alpha["F_1"]) > 0.1
    np.testing.assert_allclose(log_alpha["F_2"], log_alpha["F_1"] + weights["posterior_2.alpha_bias"], **CLOSE)
    np.testing.assert_allclose(log_alpha["F"], log_alpha["F_2"] + weights["posterior.alpha_bias"], **CLOSE)
    for measure in found.values():
        np.testing.assert_allclose(measure[:, 0, 0], np.log(COUNT), **CLOSE)


@pytest.mark.usefixtures("_float64")
@pytest.mark.parametrize("norm", ["pre", "post"])
def test_at_points_whose_norms_are_undone_a_block_is_the_plain_one(both, engine, norm):
    """σ → 0 and log α = |h|² / (2 r): torch's own layer, from a mean measure and from atoms. Of h that the norm leaves alone."""
    hidden, heads, inner, lengths = 8, 2, 12, np.array([4, 2, 3])
    rng = np.random.default_rng(1)
    torch.manual_seed(0)
    layer = torch.nn.TransformerEncoderLayer(
        hidden, heads, inner, 0.0, "gelu", batch_first=True, norm_first=norm == "pre", dtype=torch.float64
    )
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            free = not name.startswith("norm") or (norm, name[:5]) != ("pre", "norm1")
            parameter.copy_(
                0.4 * torch.randn_like(parameter) + ("norm" in name and "weight" in name) if free else parameter
            )
    last = 1 + 0.3 * rng.standard_normal(hidden), rng.standard_normal(hidden)
    h = rng.standard_normal((B, T, hidden))
    h -= h.mean(-1, keepdims=True)
    h *= ((1 - 1e-5) / (h**2).mean(-1, keepdims=True)) ** 0.5
    with torch.no_grad():
        plain = layer(torch.as_tensor(h), src_key_padding_mask=torch.as_tensor(np.arange(T) >= lengths[:, None]))
        if norm == "pre":
            plain = torch.nn.functional.layer_norm(plain, (hidden,), *map(torch.as_tensor, last))

    found = {name: both.numpy_of(parameter) for name, parameter in layer.named_parameters()}
    query, key, value = np.split(found["self_attn.in_proj_weight"], 3)
    query_bias, _, value_bias = np.split(found["self_attn.in_proj_bias"], 3)
    weights = {"query": query, "query_bias": query_bias, "key": key, "value": value, "value_bias": value_bias}
    for ours, theirs in (
        ("attention_out", "self_attn.out_proj"),
        ("feedforward_in", "linear1"),
        ("feedforward_out", "linear2"),
        ("attention_norm", "norm1"),
        ("feedforward_norm", "norm2"),
    ):
        weights |= {f"{ours}_0": found[f"{theirs}.weight"], f"{ours}_bias_0": found[f"{theirs}.bias"]}
    weights |= {"norm": last[0], "norm_bias": last[1]} if norm == "pre" else {}
    encoder = VectorEncoder(hidden=hidden, heads=heads, feedforward=inner, norm=norm, dropout=0.0)
    assert isinstance(encoder.block(), MeasureBlock)
    block = both.realised(engine, encoder.block(), weights, latent=hidden)

    class Whole:
        loc, variance, log_alpha_scale = np.zeros(hidden), np.ones(hidden), 1.0

    numbers = identity(Whole, hidden // heads, tau_alpha=10.0)
    names = {"loc": "loc", "loc_bias": "loc_bias", "log_variance": "log_variance", "alpha": "linear"}
    names |= {"log_variance_bias": "log_variance_bias", "alpha_square": "square", "alpha_bias": "bias"}
    arrays = {ours: np.asarray(getattr(numbers, theirs)) for ours, theirs in names.items()}
    posterior = both.realised(engine, DirichletProcessPosterior(), arrays, features=hidden, latent=hidden)
    prior = both.realised(engine, DirichletProcessPrior(dim=hidden, pseudo_count=1e-10))
    array = torch.as_tensor if engine == "pyro" else jnp.asarray
    mean = posterior(array(h), array(lengths), prior=prior).mean_measure
    for measure in (mean, mean[..., : 1 + hidden]):
        ours = both.numpy_of(block(array(h), measure))
        for row, length in enumerate(lengths):
            np.testing.assert_allclose(ours[row, :length], plain[row, :length], atol=1e-10)


@pytest.mark.usefixtures("_float64")
def test_mean_measures_stand_in_for_the_draws_below(both, engine):
    batch = both.sentences(*WORDS)
    program, state = begun(both, engine, networks(places=2), batch)
    found = measures(program, state, batch)
    modules = program.networks if engine == "pyro" else program.modules(state.parameters)
    array = torch.as_tensor if engine == "pyro" else jnp.asarray
    lengths, below = array(batch["lengths"]), ()
    h = modules["encoder"](array(batch["targets"].astype(np.int64)), lengths)
    for site in SITES:
        name = site.replace("F", "posterior")
        law = modules[name](h, lengths, *below, prior=modules["prior"])
        np.testing.assert_allclose(found[site], both.numpy_of(law.mean_measure), err_msg=site, **CLOSE)
        if site != "F":
            h, below = modules[site.replace("F", "block")](h, law.mean_measure), (law.log_alpha[..., 1:],)
    assert found["F"].shape == (B, 1 + T, 1 + 2 * P)
    assert all(np.isfinite(measure).all() for measure in found.values())
    assert list(program.posterior(state, batch)) == ["F_1"]


@pytest.mark.usefixtures("_float64")
@pytest.mark.parametrize(("objective", "norm"), [("stratified", "pre"), ("mixture", "post")])
def test_engines_agree_at_the_same_draws(both, objective, norm):
    batch, nets = both.sentences(*WORDS), networks(norm=norm, places=2, objective=objective)
    program, state = begun(both, "pyro", nets, batch)
    values = {site: draw[0] for site, draw in program.draws(state, batch, seed=0, particles=1).items()}
    assert {site: value.shape for site, value in values.items()} == dict.fromkeys(SITES, (B, 2 * (1 + T), 1 + P))
    terms, moved, means = [], [], []
    for engine in both.engines:
        program, state = begun(both, engine, nets, batch, both.drawing(engine, NVAE, values))
        terms.append(program.terms(state, batch, seed=0))
        means.append(measures(program, state, batch))
        moved.append(both.gradients(program, state, batch)[0])
    for table in TABLES:
        ours, theirs = (getattr(found, table) for found in terms)
        assert set(ours) == set(theirs) == ({"n", "x"} if table == "log_likelihood" else set(SITES))
        for site, value in ours.items():
            np.testing.assert_allclose(value, theirs[site], err_msg=f"{table}/{site}", **CLOSE)
    for ours, theirs in (moved, means):
        for name, value in ours.items():
            np.testing.assert_allclose(value, theirs[name], err_msg=name, rtol=1e-6, atol=1e-8)


@pytest.mark.usefixtures("_float64")
def test_particles_are_draws_side_by_side(both, engine):
    """Terms of three particles at once against those of each draw replayed alone; the weights against their sum."""
    batch, nets = both.sentences(*WORDS), networks()
    program, state = begun(both, engine, nets, batch)
    terms = program.terms(state, batch, seed=0, particles=3)
    values = program.draws(state, batch, seed=0, particles=3)
    weights = program.log_weights(state, batch, seed=0, particles=3, rows=100)
    for number in range(2):
        one = {site: value[number] for site, value in values.items()}
        alone = begun(both, engine, nets, batch, both.drawing(engine, NVAE, one))
        found = alone[0].terms(alone[1], batch, seed=0)
        for table in ("log_likelihood", "log_prior", "log_posterior"):
            for site, value in getattr(found, table).items():
                together = np.broadcast_to(getattr(terms, table)[site], (3, B))[number]
                np.testing.assert_allclose(together, value[0], err_msg=f"{table}/{site}", **CLOSE)
        np.testing.assert_allclose(weights[number], np.asarray(found.log_weight())[0], **CLOSE)
        for site, kl in found.kl.items():
            np.testing.assert_allclose(np.broadcast_to(terms.kl[site], (3, B, 1))[number], kl, **CLOSE)


@pytest.mark.usefixtures("_float64")
def test_padding_changes_nothing(both, engine):
    narrow, wide = (both.sentences(*WORDS, width=width) for width in (T, T + 2))
    beyond = np.arange(T + 2) >= wide["lengths"][:, None]
    wide["targets"][beyond] = wide["inputs"][beyond] = V - 1
    program, state = begun(both, engine, networks(), narrow)
    first, second = (measures(program, state, batch) for batch in (narrow, wide))
    for site in SITES:
        np.testing.assert_allclose(second[site][:, : 1 + T], first[site], err_msg=site, **CLOSE)
        assert (second[site][:, 1 + T :, 0] == NEVER).all()
    values = {site: _draw(narrow["lengths"]) for site in SITES}
    nowhere = np.zeros((1, B, 2, 1 + P))
    nowhere[..., 0] = NEVER
    wider = {site: np.concatenate((value, nowhere), 2) for site, value in values.items()}
    joint = program.log_joint(state, narrow, values)
    np.testing.assert_allclose(program.log_joint(state, wide, wider), joint, **CLOSE)
    block = both.realised(engine, MeasureBlock(hidden=4, layers=1, heads=2), latent=P)
    array = torch.as_tensor if engine == "pyro" else jnp.asarray
    h = np.random.default_rng(2).standard_normal((B, T, 4))
    read = [both.numpy_of(block(array(h), array(value["F"]))) for value in (values, wider)]
    np.testing.assert_allclose(*read, **CLOSE)


def _draw(lengths):
    """(1, B, 1 + T, 1 + P): a measure of the right number of atoms for each length."""
    rng, found = np.random.default_rng(3), np.zeros((1, B, 1 + T, 1 + P))
    found[..., 0] = NEVER
    for row, length in enumerate(lengths):
        found[0, row, : 1 + length, 0] = np.log(rng.dirichlet(np.ones(1 + length)))
        found[0, row, : 1 + length, 1:] = rng.standard_normal((1 + length, P))
    return found


@pytest.mark.usefixtures("_float64")
def test_auxiliary_measures_leave_the_evidence_as_it_is_and_the_elbo_below_it(both, engine):
    """log p(x, n) by importance weights over F_1 and F, against draws of F alone from its prior."""
    batch, particles = both.sentences(*WORDS[:2]), 3000
    nets = networks(stacked=1, initial_log_variance=0.0)
    program, state = begun(both, engine, nets, batch)
    weights = program.weights(state)
    near = {name: 0.15 * value for name, value in weights.items() if name.startswith("posterior")}
    state = program.load_weights(state, weights | near)
    log_weights = program.log_weights(state, batch, seed=1, particles=particles, rows=2000)
    bound, error = log_mean(log_weights)
    assert (error < 0.2).all()

    lengths = np.tile(batch["lengths"], particles)
    drawn = program.prior_draws(state, seed=2, rows=len(lengths), lengths=lengths).reshape(particles, 2, -1, 1 + P)
    plain, _ = begun(both, engine, networks(stacked=0), batch, both.drawing(engine, NVAE, {"F": drawn}))
    plain_state = plain.init(batch)
    kept = {name: value for name, value in program.weights(state).items() if name in plain.weights(plain_state)}
    terms = plain.terms(plain.load_weights(plain_state, kept), batch, seed=0, particles=particles)
    evidence, other = log_mean(sum(terms.log_likelihood.values()))
    np.testing.assert_array_less(np.abs(bound - evidence), 4 * np.hypot(error, other))

    elbo = program.terms(state, batch, seed=3, particles=200).elbo()
    np.testing.assert_array_less(elbo.mean(0) - 4 * elbo.std(0) / 200**0.5, evidence + 4 * other)
    assert (elbo.mean(0) < evidence - 0.05).all()


@pytest.mark.usefixtures("_float64")
@pytest.mark.parametrize("objective", ["mixture", "paper"])
def test_every_weight_is_trained_and_the_objective_falls(both, engine, objective):
    batch = both.sentences(*WORDS)
    program = both.program(engine, NVAE, networks(stacked=1, objective=objective), data_size=B)
    state = program.init(batch)
    found, losses = program.weights(state), []
    for step in range(8):
        state, info = program.step(state, [batch], both.control(step, rate=2e-3))
        losses.append(float(info["objective"]))
    assert np.isfinite(losses).all()
    assert np.mean(losses[-3:]) < np.mean(losses[:3])
    still = {name for name, value in program.weights(state).items() if np.array_equal(value, found[name])}
    assert still == {"length.log_shares"}
    assert np.isfinite(program.mean_measures(state, batch)["F"]).all()


def test_only_random_measures_are_stacked():
    prior = {"kind": "pooled_normal", "dim": P}
    with pytest.raises(
        BadInput, match=r"'pooled_normal' has none: use the posterior 'dirichlet_process', or stacked = 0"
    ):
        parse(
            {"pair": "nvae", "model": {"prior": prior}, "guide": {"posterior": {"kind": "pooled_normal"}, "stacked": 1}}
        )
    recipe = parse({"pair": "nvae", "guide": {"stacked": 3}})
    assert [name for name in NVAE.realisable(recipe.model, recipe.guide, V) if name.startswith("block")] == [
        "block_1",
        "block_2",
        "block_3",
    ]
