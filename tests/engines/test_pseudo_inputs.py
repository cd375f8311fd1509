"""A VampPrior whose pseudo-inputs are data: p(z) = 1/K Σ_k q(z | x_k), with the guide as it is, and the x_k where they were."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from scipy.special import logsumexp

from guidebook.engines.protocol import OptimiserSpec
from guidebook.guides import PAIRS
from guidebook.inference import KL

pytestmark = pytest.mark.usefixtures("_float64")
V, D, Z = 9, 4, 2
WORDS = ([4, 5], [6, 4, 8], [7])
TOKENS = np.array([[1, 4, 5, 2, 0, 0], [1, 6, 4, 8, 2, 0], [1, 7, 2, 0, 0, 0]])
X = np.random.default_rng(0).normal(size=(3, D))
PRIOR = {"kind": "vamp", "inputs": "data", "dim": Z, "components": 3, "length": 4}


@pytest.fixture(params=["last", "mean", "vectors"])
def chosen(request, both):
    """A pair, its networks, its pseudo-inputs, and a batch of the same rows; sentences pool their states two ways."""
    posterior = {"initial_scale": 1.0}
    if request.param == "vectors":
        pair, width, batch, inputs = PAIRS["vae"], D, both.rows({"x": X}), X
        decoder, others = {"hidden": (3,)}, {"likelihood": {"kind": "gaussian"}}
        guide = {"encoder": {"hidden": ()}, "features": 3, "posterior": posterior}
    else:
        pair, width, batch, inputs = PAIRS["sentence_vae"], V, both.sentences(*WORDS), TOKENS
        recurrent = {"kind": "gru", "embedding": 3, "hidden": 4, "initial_scale": 0.8, "embedding_scale": 1.0}
        decoder, others = recurrent | {"dropout": 0.0}, {}
        guide = {"encoder": recurrent | {"pooling": request.param}, "posterior": posterior}
    model = pair.model_spec.model_validate({"prior": PRIOR, "decoder": decoder} | others)
    networks = pair.realisable(model, pair.guide_spec.model_validate(guide), width)
    return pair, networks, inputs.astype(float), batch


def begun(both, engine, chosen, weights=None, **settings):
    pair, networks, inputs, batch = chosen
    program = both.program(engine, pair, networks, data_size=3, **settings)
    state = program.init(batch)
    return program, program.load_weights(state, weights or program.weights(state) | {"prior.inputs": inputs})


def test_the_prior_is_the_mean_of_the_posteriors_at_the_data(both, engine, chosen):
    program, state = begun(both, engine, chosen)
    batch = chosen[-1]
    q = program.posterior(state, batch)["z"]
    assert np.abs(q.loc[0] - q.loc[1:]).max() > 0.05
    z = program.draws(state, batch, seed=1, particles=2)["z"]
    parts = stats.norm(q.loc, q.scale).logpdf(z[:, :, None]).sum(-1)
    found = program.terms(state, batch, seed=1, particles=2).log_prior["z"]
    np.testing.assert_allclose(found, logsumexp(parts, -1) - np.log(3), rtol=1e-9)


def test_the_engines_agree(both, chosen):
    pair, networks, inputs, batch = chosen
    noise = {"z": np.random.default_rng(1).normal(size=(3, Z))}
    programs = {engine: begun(both, engine, chosen) for engine in both.engines}
    weights = programs["pyro"][0].weights(programs["pyro"][1])
    gradients, infos = [], []
    for engine in both.engines:
        told = both.replaying(engine, pair, noise)
        program, state = begun(both, engine, (told, networks, inputs, batch), weights)
        found, info = both.gradients(program, state, batch)
        gradients.append(found)
        infos.append(info)
    assert gradients[0].keys() == gradients[1].keys()
    assert infos[0].keys() == infos[1].keys()
    assert "gradient_norm/prior.inputs" not in infos[0]
    for name, gradient in gradients[0].items():
        np.testing.assert_allclose(gradients[1][name], gradient, rtol=1e-7, atol=1e-11, err_msg=name)
    for name, value in infos[0].items():
        assert infos[1][name] == pytest.approx(value, rel=1e-8, abs=1e-11), name


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_they_stay_while_the_guide_moves(both, engine, chosen, kind):
    """Under weight decay and accumulation too; they are weights that have no slot."""
    spec = OptimiserSpec(kind, weight_decay=0.1, momentum=0.9 if kind == "sgd" else 0.0)
    program, state = begun(both, engine, chosen, optimisers={side: spec for side in ("model", "guide")})
    batch, before = chosen[-1], program.weights(state)
    for step in range(3):
        state, _ = program.step(state, [batch] * (1 + step % 2), both.control(step, rate=1e-2))
    after = program.weights(state)
    np.testing.assert_array_equal(after["prior.inputs"], chosen[2])
    encoder = [name for name in before if name.startswith(("encoder.", "posterior."))]
    assert all(np.abs(after[name] - before[name]).max() > 1e-4 for name in encoder)
    assert program.slots(state)
    assert not any("prior.inputs" in name for name in program.slots(state))
    assert program.sides(state)["prior.inputs"] == "model"


def test_the_encoder_learns_through_them(both, engine, chosen):
    """∂ E_q log p(z) / ∂ encoder, by central differences over one weight, at latents that stay."""
    pair, networks, inputs, batch = chosen
    z = np.random.default_rng(2).normal(size=(1, 3, Z))
    told = both.drawing(engine, pair, {"z": z[0]})
    program, state = begun(both, engine, (told, networks, inputs, batch), divergence=KL(estimator="sampled"))
    weights = program.weights(state)
    name = next(name for name in weights if name.startswith("encoder.weight"))

    def loss(shift):
        moved = weights[name].copy()
        moved[0, 0] += shift
        other, at = begun(both, engine, (pair, networks, inputs, batch), weights | {name: moved})
        q = other.posterior(at, batch)["z"]
        parts = stats.norm(q.loc, q.scale).logpdf(z[0][:, None]).sum(-1)
        own = stats.norm(q.loc, q.scale).logpdf(z[0]).sum(-1)
        return (own - logsumexp(parts, -1)).mean()

    step = 1e-5
    found, _ = both.gradients(program, state, batch)
    assert found[name][0, 0] == pytest.approx((loss(step) - loss(-step)) / (2 * step), rel=1e-6)
