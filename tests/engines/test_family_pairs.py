"""The sentence VAE with every prior and posterior in place of its own: trained, judged, refused where it must be."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError

from guidebook.guides import PAIRS
from guidebook.inference import KL
from guidebook.inference.evaluate import evaluate_program
from guidebook.inference.mistakes import sentence
from guidebook.models.errors import BadInput

pytestmark = pytest.mark.usefixtures("_float64")
PAIR = PAIRS["sentence_vae"]
V, Z = 11, 3
REAL = [
    "diagonal_normal",
    "low_rank_normal",
    "full_normal",
    "batch_normalised_normal",
    "delta_normal",
    "laplace",
    "logistic",
    "point_mass",
    "flow_normal",
]
COMBINATIONS = [
    *(("standard_normal", kind) for kind in REAL),
    ("diagonal_normal", "full_normal"),
    ("gaussian_mixture", "diagonal_normal"),
    ("flow", "diagonal_normal"),
    ("vamp", "diagonal_normal"),
    ("vamp", "full_normal"),
    ("uniform_box", "uniform_box"),
    ("hyperspherical_uniform", "von_mises_fisher"),
    ("hyperspherical_uniform", "power_spherical"),
    ("bernoulli", "relaxed_bernoulli"),
    ("categorical", "relaxed_categorical"),
    ("bernoulli", "bernoulli"),
    ("categorical", "categorical"),
]


def tables(prior, posterior):
    recurrent = {"kind": "gru", "embedding": 5, "hidden": 5, "initial_scale": 0.6}
    model = PAIR.model_spec.model_validate(
        {"prior": {"kind": prior, "dim": Z}, "decoder": recurrent | {"dropout": 0.0, "tie_embeddings": True}}
    )
    guide = PAIR.guide_spec.model_validate(
        {"posterior": {"kind": posterior, "initial_scale": 0.8}, "encoder": recurrent}
    )
    return model, guide


def divergence_for(posterior):
    return KL() if posterior not in ("bernoulli", "categorical") else KL(estimator="score", particles=2)


@pytest.fixture
def batch(both):
    return both.sentences([4, 5], [8], [], filler=1)


@pytest.mark.parametrize(("prior", "posterior"), COMBINATIONS, ids=map(" ".join, COMBINATIONS))
def test_it_is_trained_and_judged(both, engine, batch, prior, posterior):
    networks = PAIR.realisable(*tables(prior, posterior), V)
    program = both.program(engine, PAIR, networks, data_size=40, divergence=divergence_for(posterior))
    state = program.init(batch)
    for step in range(3):
        state, info = program.step(state, [batch], both.control(step, rate=1e-2))
        assert all(np.isfinite(float(value)) for value in info.values()), info
    found = evaluate_program(program, state, [batch], particles=2, rows=100, seed=0, text=True, unit="word")
    assert np.isfinite([found.elbo, found.iw_nll, found.kl]).all()
    assert "KL" in repr(found)
    q = program.posterior(state, batch)["z"]
    assert q.loc.shape == q.scale.shape == (4, Z)
    assert np.isfinite(program.prior_draws(state, seed=0, rows=2)).all()


@pytest.mark.parametrize(("prior", "posterior"), COMBINATIONS, ids=map(" ".join, COMBINATIONS))
def test_the_engines_agree_about_a_posterior(both, batch, prior, posterior):
    networks = PAIR.realisable(*tables(prior, posterior), V)
    programs = [
        both.program(engine, PAIR, networks, data_size=40, divergence=divergence_for(posterior))
        for engine in both.engines
    ]
    first, second = (program.posterior(program.init(batch), batch)["z"] for program in programs)
    assert first.family == second.family
    np.testing.assert_allclose(first.loc, second.loc, rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(first.scale, second.scale, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize(
    ("table", "wrong", "right"), [("prior", "gausian_mixture", "gaussian_mixture"), ("posterior", "laplas", "laplace")]
)
def test_an_unknown_kind_names_the_nearest(table, wrong, right):
    spec = PAIR.model_spec if table == "prior" else PAIR.guide_spec
    with pytest.raises(ValidationError) as caught:
        spec.model_validate({table: {"kind": wrong}})
    assert f"did you mean {right!r}?" in sentence(spec, caught.value)


def test_a_table_without_a_kind_is_the_usual_one():
    assert PAIR.model_spec.model_validate({"prior": {"dim": Z}}).prior.kind == "standard_normal"
    assert PAIR.guide_spec.model_validate({"posterior": {"initial_scale": 0.5}}).posterior.kind == "diagonal_normal"


def test_running_moments_follow_those_of_the_batches(both, engine, batch):
    """By the same recursion as NumPy's, without a step of the optimiser; one update however many batches it has."""
    networks = PAIR.realisable(*tables("standard_normal", "batch_normalised_normal"), V)
    program = both.program(engine, PAIR, networks, data_size=40)
    state = program.init(batch)
    assert not any(name.endswith((".mean", ".variance")) for name in program.slots(state))
    h = program.posterior(state, batch)["z"].loc / 0.6  # moments start at 0 and 1, the shift at 0
    mean, variance = 0.0, 1.0
    for step in range(3):
        state, info = program.step(state, [batch, batch], both.control(step, rate=0.0))
        assert not any("posterior.mean" in key for key in info)
        mean, variance = 0.9 * mean + 0.1 * h.mean(0), 0.9 * variance + 0.1 * h.var(0)
        np.testing.assert_allclose(program.weights(state)["posterior.mean"], mean, rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(program.weights(state)["posterior.variance"], variance, rtol=1e-6)


def test_a_batch_of_one_has_no_moments(both, engine):
    networks = PAIR.realisable(*tables("standard_normal", "batch_normalised_normal"), V)
    with pytest.raises(BadInput, match=r"one row: set fit\.batch_size to 2 or more$"):
        both.program(engine, PAIR, networks, data_size=40).init(both.sentences([4, 5]))
