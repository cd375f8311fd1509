"""The NVAE as a whole on both engines: its KLs by SciPy, its bounds, pads, the other engine and stock SVI."""

from __future__ import annotations

import math
from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pyro
import pytest
import torch
from scipy.special import digamma, gammaln, logsumexp

from guidebook.guides import PAIRS
from guidebook.guides.nvae_guide import NVAEGuide
from guidebook.inference import IWAE, KL
from guidebook.models.batch import Batch
from guidebook.models.measures import NEVER
from guidebook.models.nvae import NVAEModel

NVAE, V = PAIRS["nvae"], 9
STACK = {"hidden": 4, "layers": 1, "heads": 2, "feedforward": 5, "dropout": 0.0}
WORDS = ([4, 5, 6], [7], [], [8, 4, 4, 3])
RNG = np.random.default_rng(0)
pytestmark = pytest.mark.usefixtures("_float64")


def networks(prior=None, posterior=None, longest=8, stacked=0, **decoder):
    model = {"prior": {"dim": 2} | (prior or {}), "decoder": STACK | decoder, "longest": longest}
    guide = {"posterior": posterior or {}, "encoder": STACK, "stacked": stacked}
    return NVAE.realisable(NVAEModel.model_validate(model), NVAEGuide.model_validate(guide), V)


def begun(both, engine, batch, nets, seed=0, **settings):
    """Weights of order one, so that everything matters."""
    program = both.program(engine, NVAE, nets, data_size=len(batch["weight"]), **settings)
    state, rng = program.init(batch), np.random.default_rng(seed)
    weights = {
        name: value if name == "length.log_shares" else value + 0.4 * rng.normal(size=value.shape)
        for name, value in sorted(program.weights(state).items())
    }
    return program, program.load_weights(state, weights)


def dirichlet_kl(a, b):
    return (
        gammaln(a.sum())
        - gammaln(b.sum())
        - (gammaln(a) - gammaln(b)).sum()
        + (a - b) @ (digamma(a) - digamma(a.sum()))
    )


def kl_by_hand(measure, n, objective, places, pseudo_count, increment):
    """Of one sentence from the mean measure alone, by SciPy."""
    alpha, loc, variance = np.exp(measure[: n + 1, 0]), *np.split(measure[: n + 1, 1:], 2, -1)
    each = 0.5 * (loc**2 + variance - 1 - np.log(variance)).sum(-1)
    atoms, total = places * (n + 1), pseudo_count + increment * n
    prior = np.full(atoms, total / atoms)
    if objective == "stratified":
        return dirichlet_kl(np.repeat(alpha / places, places), prior) + places * each.sum()
    share = alpha / alpha.sum()
    return dirichlet_kl(np.full(atoms, alpha.sum() / atoms), prior) + atoms * share @ each


@pytest.mark.parametrize(("objective", "places"), [("mixture", 1), ("mixture", 2), ("stratified", 2)])
def test_the_kl_is_the_formula_whatever_the_draw(both, engine, objective, places):
    """Spec 20 and 21: it hangs on no seed, is SciPy's, and what Monte Carlo finds or an upper bound of it."""
    batch = both.sentences(*WORDS)
    nets = networks({"places": places, "pseudo_count": 0.8, "increment": 0.6}, {"objective": objective})
    program, state = begun(both, engine, batch, nets)
    kls = [program.terms(state, batch, seed=seed).kl["F"][:, 0] for seed in (0, 1)]
    np.testing.assert_array_equal(*kls)
    measure = program.mean_measures(state, batch)["F"]
    np.testing.assert_allclose(measure[:, 0, 0], np.log(0.8))
    np.testing.assert_allclose(measure[:, 0, 1:], [[0, 0, 1, 1]] * 4)
    wanted = [kl_by_hand(measure[i], int(n), objective, places, 0.8, 0.6) for i, n in enumerate(batch["lengths"])]
    np.testing.assert_allclose(kls[0], wanted, rtol=1e-9)
    terms = program.terms(state, batch, seed=0, particles=3000)
    ratio = terms.log_posterior["F"] - terms.log_prior["F"]
    error = ratio.std(0) / math.sqrt(3000)
    if objective == "stratified":
        assert (np.abs(ratio.mean(0) - wanted) < 4.5 * error).all()
    else:
        assert (ratio.mean(0) < wanted + 4.5 * error).all()
        assert (ratio.mean(0) < np.array(wanted) - 5 * error).any()


def test_a_step_sees_the_choice_of_every_measure_it_drew(both, engine):
    seen = []

    class Noted(KL):
        def loss(self, terms, weight):
            seen.append({site: tuple(value.shape) for site, value in terms.choice.items()})
            return super().loss(terms, weight)

    batch, nets = both.sentences(*WORDS), networks({"places": 2}, {"gradient": "score"}, stacked=1)
    program = both.program(engine, NVAE, nets, data_size=len(WORDS), divergence=Noted(particles=2))
    program.step(program.init(batch), [batch], both.control())
    assert seen[-1] == {"F_1": (2, len(WORDS)), "F": (2, len(WORDS))}


def test_pads_and_filler_change_no_term_and_no_gradient(both, engine):
    """Spec 9, of a random measure with two atoms a component; draws replayed."""
    noise = {"F": RNG.normal(size=(6, 2, 9, 3))}
    found = []
    for width, filler in ((5, 0), (7, 2)):
        batch = both.sentences(*WORDS, width=width, filler=filler)
        pair = both.replaying(engine, NVAE, {"F": noise["F"][: len(batch["weight"])]})
        nets = networks({"places": 2}, {"gradient": "implicit"})
        program = both.program(engine, pair, nets, data_size=4)
        state = program.init(batch)
        terms = program.terms(state, batch, seed=0)
        rows = [table[site][..., :4] for table in terms[:3] for site in sorted(table)]
        gradients, info = both.gradients(program, state, batch)
        scale = len(batch["weight"]) / 4
        found.append(([*rows, terms.kl["F"][:4]], {k: g * scale for k, g in gradients.items()}, info["objective"]))
    (one, gradients, objective), (other, others, again) = found
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9)
    assert again == pytest.approx(objective, rel=1e-10)
    for name, gradient in gradients.items():
        np.testing.assert_allclose(others[name], gradient, rtol=1e-8, atol=1e-11, err_msg=name)


def test_bounds_are_in_order(both, engine):
    """ELBO with the mixture's bound on the KL ≤ IWAE_1 ≤ IWAE_8 ≤ IWAE_64, in standard errors."""
    batch = both.sentences(*WORDS)
    program, state = begun(both, engine, batch, networks())
    weights = program.log_weights(state, batch, seed=0, particles=4096, rows=10_000)
    terms = program.terms(state, batch, seed=1, particles=2000)
    elbo, spread = terms.elbo().mean(0), terms.elbo().std(0) / math.sqrt(2000)
    bounds = [(elbo, spread)]
    for particles in (1, 8, 64):
        each = logsumexp(weights.reshape(-1, particles, 4), axis=1) - math.log(particles)
        bounds.append((each.mean(0), each.std(0) / math.sqrt(len(each))))
    for (low, one), (high, other) in pairwise(bounds):
        assert (high - low > -4 * np.hypot(one, other)).all()
    assert (bounds[-1][0] > bounds[1][0]).all()


def test_one_word_and_a_batch_of_fillers(both, engine):
    batch = both.sentences([], [])
    program = both.program(engine, NVAE, networks(), data_size=2, divergence=IWAE(particles=2))
    state = program.init(batch)
    gradients, info = both.gradients(program, state, batch)
    assert np.isfinite(info["objective"])
    assert all(np.isfinite(gradient).all() for gradient in gradients.values())
    empty = batch | {
        "weight": np.array([1.0, 0.0], np.float32),
        "lengths": np.array([1, 0], np.int32),
        "tokens": np.array([[1, 2], [0, 0]], np.int32),
        "inputs": np.array([[1], [0]], np.int32),
        "targets": np.array([[2], [0]], np.int32),
    }
    gradients, info = both.gradients(program, program.init(empty), empty)
    assert np.isfinite(info["objective"])
    assert all(np.isfinite(gradient).all() for gradient in gradients.values())


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_log_densities_of_one_measure_agree(both, dtype):
    """Spec 25: F itself replayed, the same packed value on both engines."""
    batch = both.sentences(*WORDS)
    value = RNG.normal(size=(4, 12, 3))
    for row, n in enumerate(batch["lengths"]):
        value[row, np.tile(np.arange(6) > n, 2), :] = [NEVER, 0, 0]
        value[row, :, 0] -= logsumexp(value[row, :, 0])
        value[row, np.tile(np.arange(6) > n, 2), 0] = NEVER
    value, found = value[:, : 2 * (batch["targets"].shape[1] + 1)].astype(dtype), []
    for engine in both.engines:
        pair = both.drawing(engine, NVAE, {"F": value})
        nets = networks({"places": 2})
        program = both.program(engine, pair, nets, data_size=4, dtype=dtype)
        state = program.init(batch)
        weights = found[0][0] if found else program.weights(state)
        state = program.load_weights(state, weights)
        terms = program.terms(state, batch, seed=0)
        gradients, info = both.gradients(program, state, batch)  # moves Pyro's weights
        found.append((weights, terms, gradients, info))
    close = {"rtol": 1e-10, "atol": 1e-11} if dtype == "float64" else {"rtol": 1e-5, "atol": 1e-5}
    for table in ("log_likelihood", "log_prior", "log_posterior", "kl"):
        for site, wanted in getattr(found[0][1], table).items():
            np.testing.assert_allclose(getattr(found[1][1], table)[site], wanted, err_msg=f"{table} {site}", **close)
    close = {"rtol": 1e-7, "atol": 1e-9} if dtype == "float64" else close
    for name, gradient in found[0][2].items():
        np.testing.assert_allclose(found[1][2][name], gradient, err_msg=name, **close)


@pytest.mark.parametrize("objective", ["mixture", "stratified", "paper"])
def test_stock_pyro_minimises_the_same(both, objective):
    """The programs as they are under `pyro.infer.SVI`: TraceMeanField_ELBO is our loss to the last digits, one draw."""
    batch = both.sentences(*WORDS, filler=1)
    nets = networks(posterior={"objective": objective})
    program, _ = begun(both, "pyro", batch, nets)
    ppl = both.engine_module("pyro", "ppl").PPL(program.networks, dtype=torch.float64)
    story = Batch(program.arrays(batch), 4)
    model, guide = (partial(f, ppl, story, program.networks) for f in (NVAE.model, NVAE.guide))
    losses = []
    for loss in (KL().on("pyro"), pyro.infer.TraceMeanField_ELBO(), pyro.infer.Trace_ELBO()):
        if hasattr(loss, "plate"):
            loss.plate = "sentences"
        with pyro.get_param_store().scope():
            torch.manual_seed(0)
            svi = pyro.infer.SVI(model, guide, pyro.optim.SGD({"lr": 0.0}), loss)
            losses.append(svi.step())
    assert losses[1] == pytest.approx(losses[0], rel=1e-10)
    assert math.isfinite(losses[2])


@pytest.mark.parametrize("objective", ["mixture", "stratified", "paper"])
def test_stock_numpyro_minimises_the_same(both, objective):
    batch = both.sentences(*WORDS, filler=1)
    nets = networks(posterior={"objective": objective})
    program, state = begun(both, "numpyro", batch, nets)
    modules = program.modules(state.parameters)
    ppl = both.engine_module("numpyro", "ppl").PPL(modules, dtype=jnp.float64)
    story = Batch(program.arrays(batch), 4)
    model, guide = (partial(f, ppl, story, modules) for f in (NVAE.model, NVAE.guide))
    losses = []
    for loss in (KL().on("numpyro"), numpyro.infer.TraceMeanField_ELBO(), numpyro.infer.Trace_ELBO()):
        if hasattr(loss, "plate"):
            loss.plate = "sentences"
        svi = numpyro.infer.SVI(model, guide, numpyro.optim.SGD(0.0), loss)
        _, found = svi.update(svi.init(jax.random.key(0)))
        losses.append(float(found))
    assert losses[1] == pytest.approx(losses[0], rel=1e-10)
    assert math.isfinite(losses[2])
