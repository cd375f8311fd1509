"""The ELBO as a sum over every value of a discrete latent: against a sum and central differences in plain NumPy."""

from __future__ import annotations

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as ndist
import pyro
import pyro.distributions as pdist
import pytest
import torch
from numpyro.infer import SVI
from scipy.special import log_expit, log_softmax

from guidebook.guides import PAIRS, Pair
from guidebook.inference import KL, FreeBits, fit
from guidebook.inference.evaluate import evaluate_program, validate_program
from guidebook.inference.recipe import parse
from guidebook.models import MLP, BadInput

VAE = PAIRS["vae"]
B, D, Z, BETA = 4, 5, 3, 0.625
X = (np.random.default_rng(0).normal(size=(B, D)) > 0).astype(float)
EXACT = KL(estimator="enumeration")
VALUES = {
    "bernoulli": np.array(list(itertools.product([0.0, 1.0], repeat=Z))),
    "categorical": np.eye(Z),
}


def log_mass(kind, z, logits):
    """log p(z) of values (S, Z) under logits (…, Z): (S, …)."""
    z = z.reshape(len(z), *(1 for _ in logits.shape[:-1]), Z)
    if kind == "bernoulli":
        return np.where(z == 1, log_expit(logits), log_expit(-logits)).sum(-1)
    return (z * log_softmax(logits, -1)).sum(-1)


def negative_elbo(kind, prior, posterior, logits, beta=BETA):
    """(B,) from logits of p(z) (Z,), of q(z | x) (B, Z) and of p(x | z) (S, D)."""
    log_q, log_p = log_mass(kind, VALUES[kind], posterior), log_mass(kind, VALUES[kind], prior)
    likelihood = np.where(X == 1, log_expit(logits)[:, None], log_expit(-logits)[:, None]).sum(-1)
    return -(np.exp(log_q) * (likelihood + beta * (log_p[:, None] - log_q))).sum(0)


def of_story(kind, w, beta=BETA):
    features = np.tanh(X @ w["encoder.weight_0"].T + w["encoder.bias_0"])
    prior = w.get("prior.logits", np.zeros(Z))
    logits = VALUES[kind] @ w["decoder.weight_0"].T + w["decoder.bias_0"]
    return negative_elbo(kind, prior, features @ w["posterior.weight"].T, logits, beta)


def of_native(kind, w, beta=BETA):
    return negative_elbo(kind, w["prior"], X @ w["code"].T, VALUES[kind] @ w["table"].T, beta)


def slopes(value, weights, step=1e-5):
    """Central differences of the mean over rows, of every weight."""
    found = {}
    for name, array in weights.items():
        found[name] = np.zeros(array.shape)
        for place in np.ndindex(array.shape):
            moved = []
            for sign in (1, -1):
                other = {key: np.array(one, np.float64) for key, one in weights.items()}
                other[name][place] += sign * step
                moved.append(value(other).mean())
            found[name][place] = (moved[0] - moved[1]) / (2 * step)
    return found


def story(kind, dim=Z, prior=None, posterior=None):
    learned = {"learned": True} if kind == "categorical" else {}
    model = VAE.model_spec.model_validate(
        {"prior": prior or {"kind": kind, "dim": dim, **learned}, "decoder": {"hidden": ()}}
    )
    guide = VAE.guide_spec.model_validate(
        {
            "encoder": {"hidden": (), "activate_outputs": True},
            "features": 3,
            "posterior": posterior or {"kind": kind, "initial_scale": 1.0},
        }
    )
    return VAE.realisable(model, guide, D)


WEIGHTS = np.random.default_rng(3).normal(size=(Z, 1 + 2 * D))
NATIVE_WEIGHTS = {"prior": WEIGHTS[:, 0], "code": WEIGHTS[:, 1 : 1 + D], "table": WEIGHTS[:, 1 + D :].T}


def native_programs(engine, kind):
    """Model and guide f(x, size). "categorical" is one integer a datum, which no plate of particles could index."""
    ppl, dist, array = (pyro, pdist, torch.tensor) if engine == "pyro" else (numpyro, ndist, jnp.asarray)

    def law(logits):
        return dist.Bernoulli(logits=logits).to_event(1) if kind == "bernoulli" else dist.Categorical(logits=logits)

    def param(name):
        return ppl.param(name, array(NATIVE_WEIGHTS[name]))

    def plate(size, rows):
        return ppl.plate("data", size, subsample_size=rows)

    def model(x, size):
        prior, table = param("prior"), param("table")
        with plate(size, len(x)):
            z = ppl.sample("z", law(prior))
            if kind == "bernoulli":
                z = z.double() if engine == "pyro" else z.astype(float)
                logits = z @ table.T
            else:
                assert z.shape == (len(x),)
                logits = table.T[z]
            ppl.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    def guide(x, size):
        code = param("code")
        with plate(size, len(x)):
            ppl.sample("z", law(x @ code.T))

    return model, guide


def native(engine, kind):
    model, guide = native_programs(engine, kind)
    return Pair(lambda batch, size: model(batch["x"], size), lambda batch, size: guide(batch["x"], size), engine=engine)


def fitted(both, engine, form, kind, divergence=EXACT, filler=2, **networks):
    pair, nets = (VAE, story(kind, **networks)) if form == "story" else (native(engine, kind), None)
    program = both.program(engine, pair, nets, data_size=3 * B, divergence=divergence)
    batch = both.rows({"x": X}, filler=filler)
    return program, program.init(batch), batch


FORMS = pytest.mark.parametrize("form", ["story", "native"])
KINDS = pytest.mark.parametrize("kind", ["bernoulli", "categorical"])
OF = {"story": of_story, "native": of_native}


@pytest.mark.usefixtures("_float64")
@FORMS
@KINDS
def test_value_and_gradient_are_the_sum_over_all_values(both, engine, form, kind):
    program, state, batch = fitted(both, engine, form, kind)
    weights = program.weights(state)
    found, info = both.gradients(program, state, batch, weight=BETA)
    assert info["objective"] == pytest.approx(OF[form](kind, weights).sum(), rel=1e-9)
    elbo = info["log_likelihood/x"] - info["kl/z"]
    assert elbo == pytest.approx(-OF[form](kind, weights, 1.0).sum(), rel=1e-9)
    wanted = slopes(lambda w: OF[form](kind, w), weights)
    for name, gradient in found.items():  # of the mean over all rows of the batch, fillers included
        np.testing.assert_allclose(gradient, wanted[name] * B / (B + 2), atol=1e-8, err_msg=name)


@pytest.mark.usefixtures("_float64")
@FORMS
@KINDS
def test_what_is_judged_is_exact_too(both, engine, form, kind):
    program, state, batch = fitted(both, engine, form, kind)
    weights = program.weights(state)
    found = validate_program(program, state, [batch], 0, lambda terms: EXACT.reported(terms, BETA), 7)
    assert found["objective"] == pytest.approx(OF[form](kind, weights).mean(), rel=1e-9)
    assert found["elbo"] == pytest.approx(-OF[form](kind, weights, 1.0).mean(), rel=1e-9)
    judged = evaluate_program(program, state, [batch], particles=3, rows=100, seed=0, text=False)
    assert judged.elbo == pytest.approx(found["elbo"], rel=1e-9)


@pytest.mark.usefixtures("_float64")
@FORMS
def test_without_a_formula_for_the_kl_nothing_changes(both, engine, form):
    program, state, batch = fitted(both, engine, form, "bernoulli")
    terms = program.terms(state, batch, seed=0)
    assert terms.share.shape == (2**Z, B + 2)
    np.testing.assert_allclose(terms.share[:, :B].sum(0), 1.0, rtol=1e-12)
    bare = terms._replace(kl={})
    for divergence in (EXACT, KL(estimator="enumeration", free_bits=FreeBits(nats=2.0, per="sentence"))):
        ours, theirs = (divergence.loss(one, BETA)[:B] for one in (terms, bare))
        np.testing.assert_allclose(ours, theirs, rtol=1e-9)
    ours, theirs = (one.sums(EXACT.loss(one, 1.0) * one.weight) for one in (terms, bare))
    for key in ours:
        np.testing.assert_allclose(ours[key], theirs[key], rtol=1e-9)


@pytest.mark.usefixtures("_float64")
@FORMS
def test_terms_of_draws_are_there_for_an_export(both, engine, form):
    program, state, batch = fitted(both, engine, form, "bernoulli")
    found = program.terms(state, batch, seed=1, particles=5, drawn=True)
    z = program.draws(state, batch, seed=1, particles=5)["z"]
    assert found.share is None
    weights = program.weights(state)
    logits = (
        np.tanh(X @ weights["encoder.weight_0"].T + weights["encoder.bias_0"]) @ weights["posterior.weight"].T
        if form == "story"
        else X @ weights["code"].T
    )
    log_q = np.where(z[:, :B] == 1, log_expit(logits), log_expit(-logits)).sum(-1)
    np.testing.assert_allclose(found.log_posterior["z"][:, :B], log_q, rtol=1e-9)


@pytest.mark.usefixtures("_float64")
@FORMS
@KINDS
def test_the_norm_of_a_score_is_that_of_the_logits(both, engine, form, kind):
    """∂ log q / ∂ logits = z − p, for bits and for unit vectors; an integer has no such difference."""
    divergence = KL(estimator="score", baseline="optimal", particles=3)
    program, state, batch = fitted(both, engine, form, kind, divergence)
    if (form, kind) == ("native", "categorical"):
        with pytest.raises(BadInput, match="'z' is of another family: use baseline = \"others\""):
            program.step(state, [batch], both.control())
        return
    z = program.draws(state, batch, seed=2, particles=3)["z"]
    p = program.posterior(state, batch)["z"].loc
    found = program.terms(state, batch, seed=2, particles=3, drawn=True).score_norm["z"]
    np.testing.assert_allclose(found[:, :B], ((z - p) ** 2).sum(-1)[:, :B], rtol=1e-9)


@pytest.mark.usefixtures("_float64")
@pytest.mark.parametrize("baseline", ["none", "others", "optimal"])
def test_scores_average_to_the_exact_gradient(both, engine, baseline):
    count = 150
    exact, state, batch = fitted(both, engine, "story", "bernoulli", filler=0)
    wanted, _ = both.gradients(exact, state, batch, weight=BETA)
    program, state, batch = fitted(
        both, engine, "story", "bernoulli", KL(estimator="score", baseline=baseline, particles=4), filler=0
    )
    begun, draws = program.weights(state), []
    for step in range(count):
        state, _ = program.step(state, [batch], both.control(step, weight=BETA))
        moved = program.weights(state)
        draws.append({name: begun[name] - moved[name] for name in begun})
        state = program.load_weights(state, begun)
    for name, exact_gradient in wanted.items():
        found = np.stack([draw[name] for draw in draws])
        error = found.std(0, ddof=1) / count**0.5
        assert (error > 0).all()
        # some sixty means a case: false alarms below 1e-3 for all of them
        assert np.abs((found.mean(0) - exact_gradient) / error).max() < 5.0, name


@pytest.mark.usefixtures("_float64")
@KINDS
def test_as_loss_of_the_stock_svi(engine, kind):
    if engine == "pyro":
        pyro.clear_param_store()
        model, guide = native_programs(engine, kind)
        loss = EXACT.on("pyro", weight=BETA)
        value = loss.loss_and_grads(model, guide, torch.tensor(X), 3 * B)
        found = {name: one.grad.numpy() for name, one in pyro.get_param_store().named_parameters()}
        assert loss.loss(model, guide, torch.tensor(X), 3 * B) == pytest.approx(value, rel=1e-12)
        pyro.clear_param_store()
    else:
        model, guide = native_programs(engine, kind)
        svi = SVI(model, guide, numpyro.optim.SGD(1.0), EXACT.on("numpyro", weight=BETA))
        state = svi.init(jax.random.key(0), jnp.asarray(X), 3 * B)
        before = svi.get_params(state)
        state, value = svi.update(state, jnp.asarray(X), 3 * B)
        found = {name: np.asarray(before[name] - after) for name, after in svi.get_params(state).items()}
    assert float(value) == pytest.approx(3 * of_native(kind, NATIVE_WEIGHTS).sum(), rel=1e-9)
    wanted = slopes(lambda w: of_native(kind, w), NATIVE_WEIGHTS)
    for name, gradient in found.items():
        np.testing.assert_allclose(gradient, wanted[name] * 3 * B, atol=1e-7, err_msg=name)


REFUSED = {
    "continuous": ({"prior": {"dim": Z}, "posterior": {"kind": "diagonal_normal"}}, "'z' is continuous"),
    "too many": ({"dim": 13}, r"over 2\^13 values of the latent 'z', and at most 4096"),
}


@pytest.mark.usefixtures("_float64")
@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_summed_over_is_refused(both, engine, case):
    networks, said = REFUSED[case]
    with pytest.raises(BadInput, match=f'{said}.*estimator = "score"'):
        fitted(both, engine, "story", "bernoulli", **networks)


def bits(ppl, batch, nets, *, inside, observe):
    """Latents inside the data plate, or one outside."""
    logits = ppl.module("net", nets["net"])(batch.x)[:, 0]
    if not inside:
        ppl.sample("a", ppl.dist.Bernoulli(logits=logits[0]))
    with ppl.plate("data", batch.data_size, subsample=batch.index):
        for name in inside:
            ppl.sample(name, ppl.dist.Bernoulli(logits=logits))
        if observe:
            ppl.sample("x", ppl.dist.Normal(ppl.zeros((D,)), 1.0).to_event(1), obs=batch.x)


@pytest.mark.usefixtures("_float64")
@pytest.mark.parametrize(
    ("inside", "said"), [("ab", "the guide has 'a', 'b'"), ("", "one draw of the latent for every datum, and 'a'")]
)
def test_several_latents_or_a_global_one_are_refused(both, engine, inside, said):
    model, guide = (partial(bits, inside=inside, observe=observe) for observe in (True, False))
    pair = Pair(model, guide, networks={"net": MLP(inputs=D, outputs=1, hidden=())})
    program = both.program(engine, pair, data_size=B, divergence=EXACT)
    with pytest.raises(BadInput, match=f'{said}.*estimator = "score"'):
        program.init(both.rows({"x": X}))


@pytest.mark.parametrize("kind", ["bernoulli", "categorical"])
def test_sentences_are_fitted_from_a_recipe(tmp_path, engine, kind):
    (tmp_path / "text.txt").write_text("a b c\nb a\nc c a b\na\n" * 6, encoding="utf-8")
    recipe = {
        "engine": engine,
        "model": {
            "prior": {"kind": kind, "dim": 3},
            "decoder": {"kind": "lstm", "embedding": 4, "hidden": 5, "dropout": 0.3},
        },
        "guide": {"posterior": {"kind": kind}, "encoder": {"kind": "lstm", "embedding": 4, "hidden": 5}},
        "divergence": {"estimator": "enumeration", "weight": 0.5},
        "data": {"buckets": 1} | dict.fromkeys(("corpus", "valid", "test"), str(tmp_path / "text.txt")),
        "fit": {"epochs": 1, "batch_size": 6},
    }
    run = fit(parse(recipe), out=tmp_path / "run", progress=False)
    train, valid = (run.history(kind).iloc[-1] for kind in ("train", "valid"))
    for line in (train, valid):
        assert line["objective"] == pytest.approx(line["reconstruction"] + 0.5 * line["kl"], rel=1e-5)
