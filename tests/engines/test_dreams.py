"""The sleep phase of wake-sleep: against the enumerated gradient, through both engines' loops and the stock SVIs.

z ~ Categorical(softmax(a)),   x ~ Bernoulli(σ(b + C z)) twice,   q(z | x) = Categorical(softmax(W x))
"""

from __future__ import annotations

from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pyro
import pytest
import torch
from numpyro.infer import SVI

from guidebook.engines.dreams import replaced
from guidebook.guides import PAIRS, Pair, posteriors
from guidebook.inference import ReweightedWakeSleep
from guidebook.models import MLP, BadInput, Network, priors
from guidebook.models.batch import Batch

K, D, ROWS = 3, 2, 6000
LARGE = 4.5  # standard errors: false alarms below 1e-5 a comparison


def story(ppl, batch, nets, observed=lambda x: x):
    prior, decoder = (ppl.module(name, nets[name]) for name in ("prior", "decoder"))
    with ppl.plate("data", batch.data_size, subsample=batch.index), ppl.mask(batch.real):
        z = ppl.sample("z", prior())
        ppl.sample("x", ppl.dist.Bernoulli(logits=decoder(z)).to_event(1), obs=observed(batch.x))


def story_guide(ppl, batch, nets):
    posterior = ppl.module("posterior", nets["posterior"])
    with ppl.plate("data", batch.data_size, subsample=batch.index), ppl.mask(batch.real):
        ppl.sample("z", posterior(batch.x))


NETS = {
    "prior": priors.Categorical(dim=K, learned=True),
    "decoder": MLP(inputs=K, outputs=D, hidden=()),
    "posterior": Network(posteriors.Categorical(), {"features": D, "latent": K}),
}
TOY = Pair(model=story, guide=story_guide, networks=NETS)
RNG = np.random.default_rng(0)
WEIGHTS = {
    "prior.logits": np.array([0.3, -0.5, 0.1]),
    "decoder.weight_0": RNG.normal(size=(D, K)),
    "decoder.bias_0": RNG.normal(size=D),
    "posterior.weight": RNG.normal(size=(K, D)),
}


def softmax(logits):
    mass = np.exp(logits - logits.max())
    return mass / mass.sum()


def enumerated():
    """Mean and standard deviation of −∂ log q(z | x) / ∂ W, (z, x) from the model."""
    mass, slopes = [], []
    for z, x in product(range(K), product((0.0, 1.0), repeat=D)):
        on = 1 / (1 + np.exp(-WEIGHTS["decoder.bias_0"] - WEIGHTS["decoder.weight_0"][:, z]))
        mass.append(softmax(WEIGHTS["prior.logits"])[z] * np.prod(np.where(np.array(x) > 0, on, 1 - on)))
        slopes.append(np.outer(softmax(WEIGHTS["posterior.weight"] @ x) - np.eye(K)[z], x))
    assert sum(mass) == pytest.approx(1.0)
    mean, square = (np.tensordot(mass, np.array(slopes) ** power, 1) for power in (1, 2))
    return mean, np.sqrt(square - mean**2)


def gradients(both, engine, sleep, pair=TOY, filler=0):
    """The toy's gradients on data that are all ones: nothing of them is in a dream."""
    program = both.program(engine, pair, data_size=ROWS, divergence=ReweightedWakeSleep(sleep=sleep, particles=2))
    batch = both.rows({"x": np.ones((ROWS, D))}, filler)
    return both.gradients(program, program.load_weights(program.init(batch), WEIGHTS), batch)[0]


@pytest.mark.usefixtures("_float64")
def test_the_gradient_of_sleep_is_that_of_enumeration(both, engine):
    mean, spread = enumerated()
    found = gradients(both, engine, 1.0)["posterior.weight"]
    assert (np.abs(found - mean) < LARGE * spread / np.sqrt(ROWS)).all()
    assert np.abs(mean).max() > 10 * spread.max() / np.sqrt(ROWS)


@pytest.mark.usefixtures("_float64")
def test_the_share_mixes_wake_and_sleep_and_leaves_the_model_alone(both, engine):
    wake, mixed, sleep = (gradients(both, engine, share) for share in (0.0, 0.25, 1.0))
    for name in wake:
        side = 0.75 * wake[name] + 0.25 * sleep[name] if name == "posterior.weight" else wake[name]
        np.testing.assert_allclose(mixed[name], side, rtol=1e-9, atol=1e-12)
    assert np.abs(wake["posterior.weight"] - sleep["posterior.weight"]).max() > 0.05


@pytest.mark.usefixtures("_float64")
def test_filler_rows_dream_for_nothing(both, engine):
    """2 of 3 rows are fillers: the mean over all rows is a third."""
    mean, spread = enumerated()
    found = 3 * gradients(both, engine, 1.0, filler=2 * ROWS)["posterior.weight"]
    assert (np.abs(found - mean) < LARGE * spread / np.sqrt(ROWS)).all()


@pytest.mark.usefixtures("_float64")
def test_data_that_the_story_has_changed_before_it_observes_them_are_refused(both, engine):
    def changed(ppl, batch, nets):
        story(ppl, batch, nets, observed=lambda x: 1.0 * x)

    with pytest.raises(BadInput, match=r"'x'.*obs=batch\.x"):
        gradients(both, engine, 0.5, pair=Pair(model=changed, guide=story_guide, networks=NETS))


@pytest.mark.usefixtures("_float64")
def test_a_latent_of_the_whole_data_set_is_refused(both, engine):
    def model(ppl, batch, nets):
        ppl.sample("w", ppl.dist.Normal(ppl.zeros((1,)), 1.0).to_event(1))
        story(ppl, batch, nets)

    def guide(ppl, batch, nets):
        ppl.sample("w", ppl.dist.Normal(ppl.zeros((1,)), 1.0).to_event(1))
        story_guide(ppl, batch, nets)

    with pytest.raises(BadInput, match="'w' stands outside the plate"):
        gradients(both, engine, 0.5, pair=Pair(model=model, guide=guide, networks=NETS))


@pytest.mark.parametrize("name", ["vae", "sentence_vae"])
def test_pairs_of_the_table_train_asleep(both, engine, name):
    """Continuous latents, sentences with filler rows, compiled where the engine compiles; one shape, once."""
    pair = PAIRS[name]
    cell = {"kind": "gru", "embedding": 4, "hidden": 4} if pair.text else {"hidden": (4,)}
    tables = [
        spec.model_validate({part: value for part, value in chosen.items() if part in spec.model_fields})
        for spec, chosen in (
            (pair.model_spec, {"prior": {"dim": 2}, "decoder": cell}),
            (pair.guide_spec, {"encoder": cell}),
        )
    ]
    words = ([4, 5, 6, 7], [8, 4], [], [10, 10, 9])
    x = (np.random.default_rng(1).random((4, 5)) < 0.5).astype(np.float32)
    batch = both.sentences(*words, width=6, filler=1) if pair.text else both.rows({"x": x}, filler=1)
    divergence = ReweightedWakeSleep(sleep=1.0, particles=2)
    networks = pair.realisable(*tables, 11 if pair.text else 5)
    program = both.program(engine, pair, networks, data_size=4, divergence=divergence, dtype="float32")
    state = program.init(batch)
    begun = program.weights(state)
    for step in range(4):
        state, info = program.step(state, [batch], both.control(step, rate=0.1))
        assert all(np.isfinite(float(value)) for value in info.values())
    assert program.compilations <= 1
    moved = {key.partition(".")[0] for key, value in program.weights(state).items() if (value != begun[key]).any()}
    assert moved >= {"encoder", "posterior", "decoder"}
    dream = program.terms(state, batch, seed=0).dream["z"]
    assert dream.shape == (5,)
    assert (dream[:4] < 5).all()
    assert dream[4] == 0.0


def stock(engine, asked):
    """The slope of the guide's one parameter under stock SVI: x ~ N(z, 1), z ~ N(0, 1), q = N(gain x, 1)."""

    def programs(ppl, zeros, observed):
        def model(batch):
            with ppl.plate("data", 4000):
                z = ppl.sample("z", ppl.distributions.Normal(zeros, 1.0))
                ppl.sample("x", ppl.distributions.Normal(z, 1.0), obs=observed(batch["x"]))

        def guide(batch):
            gain = ppl.param("gain", zeros + 0.1)
            with ppl.plate("data", 4000):
                ppl.sample("z", ppl.distributions.Normal(gain * batch["x"], 1.0))

        return model, guide

    loss, x = ReweightedWakeSleep(sleep=1.0, particles=2).on(engine), np.full(4000, 7.0)
    if engine == "pyro":
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        model, guide = programs(pyro, torch.zeros(()), asked)
        loss.loss_and_grads(model, guide, {"x": torch.tensor(x)})
        found = float(next(value for _, value in pyro.get_param_store().named_parameters()).grad)
        pyro.clear_param_store()
        return found
    model, guide = programs(numpyro, jnp.zeros(()), asked)
    svi = SVI(model, guide, numpyro.optim.SGD(1.0), loss)
    state = svi.init(jax.random.key(0), {"x": jnp.asarray(x)})
    before = svi.get_params(state)["gain"]
    return float(before - svi.get_params(jax.jit(svi.update)(state, {"x": jnp.asarray(x)})[0])["gain"])


def test_it_is_a_loss_of_the_stock_svis_where_the_data_are_arguments(engine):
    """−∂ E log q / ∂ gain = E (gain x − z) x = 2 gain − 1 a row; its variance is at most E (gain x − z)² x² < 3 · 2."""
    assert abs(stock(engine, lambda x: x) / 4000 - (2 * 0.1 - 1)) < LARGE * np.sqrt(6 / 4000)
    with pytest.raises(BadInput, match="no array of the batch"):
        stock(engine, lambda x: x + 0.0)


def test_a_dreamed_sentence_ends_at_its_eos_or_at_the_width():
    shown = np.array([[4, 2, 0, 0]] * 4)
    drawn = np.array([[5, 6, 2, 0], [2, 0, 0, 0], [5, 0, 6, 7], [5, 6, 7, 2]])
    batch = Batch(
        {
            "tokens": np.concatenate([np.ones((4, 1), int), shown], 1),
            "inputs": shown,
            "targets": shown,
            "lengths": np.full(4, 2, np.int32),
            "weight": np.ones(4),
        },
        9,
    )
    ((found,), nothing) = replaced(((batch,), {}), {"x": (shown, drawn)})
    assert nothing == {}
    assert found.data_size == 9
    np.testing.assert_array_equal(found.lengths, [3, 1, 4, 4])
    np.testing.assert_array_equal(found.tokens, np.concatenate([np.ones((4, 1), int), drawn], 1))
    np.testing.assert_array_equal(found.inputs, found.tokens[:, :-1])
    assert found.lengths.dtype == np.int32
    assert found.weight is batch.weight
    assert batch.targets is shown
