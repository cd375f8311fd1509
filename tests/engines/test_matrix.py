"""The compatibility matrix, all of it: what fits is trained on both engines, and what does not is refused."""

from __future__ import annotations

from functools import partial

import jax
import numpy as np
import pytest

from guidebook.engines.protocol import Objective, OptimiserSpec
from guidebook.engines.terms import Sides
from guidebook.guides import PAIRS, Posterior
from guidebook.inference.compatibility import matrix
from guidebook.inference.divergences import Divergence
from guidebook.inference.mistakes import kinds
from guidebook.inference.recipe import parse
from guidebook.models import Prior
from guidebook.models.errors import BadInput

VAE = PAIRS["vae"]
Z, D, B = 3, 4, 6
ROWS = list(matrix())
FAMILIES = [
    (prior, posterior)
    for prior in kinds(Prior)
    for posterior in kinds(Posterior)
    if any(row["fits"] for row in ROWS if (row["prior"], row["posterior"]) == (prior, posterior))
]
KEYS = ("prior", "posterior", "divergence", "estimator")
STEPS, RATE = 10, 0.012
REQUIRED = {"target_rate": {"nats": 1.0}, "minimum_rate": {"nats": 1.0}}


def recipe(row):
    """The recipe of one row of the matrix."""
    kind, estimator = row["divergence"], row["estimator"]
    return {
        "pair": "vae",
        "model": {"prior": {"kind": row["prior"], "dim": Z}, "decoder": {"hidden": [4]}, "likelihood": {"kind": "gaussian"}},
        "guide": {
            "posterior": {"kind": row["posterior"], "initial_scale": 0.5},
            "encoder": {"hidden": [4]},
            "features": 3,
        },
        "divergence": {"kind": kind} | ({"estimator": estimator} if estimator else {}) | REQUIRED.get(kind, {}),
        "data": {"file": "x.npz"},
    }  # fmt: skip


def weighed(row, weight):
    """The weight as the loop hands it on: beside what the divergence carries, where it does."""
    carried = parse(recipe(row)).divergence.carried()
    return {"weight": weight, **carried} if carried else weight


def rows_of(prior, posterior):
    return [row for row in ROWS if (row["prior"], row["posterior"]) == (prior, posterior)]


def realised(both, engine, row, divergence=None):
    chosen = parse(recipe(row) | {"engine": engine})
    networks = VAE.realisable(chosen.model, chosen.guide, D)
    adam = {side: OptimiserSpec("adam") for side in ("model", "guide")}
    return both.program(
        engine, VAE, networks, data_size=B, divergence=divergence or chosen.divergence, optimisers=adam, clip=5.0
    )


@pytest.fixture(scope="module")
def batch(both):
    loadings = np.random.default_rng(0).normal(size=(2, D))
    return both.rows({"x": 2 * np.random.default_rng(1).normal(size=(B, 2)) @ loadings + 1})


def trained_on_pyro(both, row, batch):
    """The unweighted ELBO before and after some steps, whose figures are finite."""
    program = realised(both, "pyro", row)
    state = program.init(batch)
    elbo = [program.terms(state, batch, seed=1, particles=16).elbo().mean()]
    for step in range(STEPS):
        state, info = program.step(state, [batch], both.control(step, weighed(row, 1.0), RATE))
        assert all(np.isfinite(float(value)) for value in info.values()), (row, info)
    return [*elbo, program.terms(state, batch, seed=1, particles=16).elbo().mean()]


@pytest.mark.slow
@pytest.mark.parametrize(("prior", "posterior"), FAMILIES, ids=map(" ".join, FAMILIES))
def test_what_fits_is_trained_on_pyro(both, prior, posterior, batch):
    for row in rows_of(prior, posterior):
        if row["fits"]:
            before, after = trained_on_pyro(both, row, batch)
            assert after > before, row


class Together:
    """An objective of many: the weight says whose step it is, and JAX compiles one step for all of them."""

    def __init__(self, rows):
        self.losses = [partial(self.sides, row, parse(recipe(row)).divergence) for row in rows]
        every = [parse(recipe(row)).divergence.objective() for row in rows]
        self.needs = frozenset().union(*(one.needs for one in every))
        self.pathwise = any(one.pathwise for one in every)

    @staticmethod
    def sides(row, divergence, terms, weight):
        found = divergence.loss(terms, weighed(row, weight))
        return found if isinstance(found, Sides) else Sides(found, found, found)

    def loss(self, terms, weight):
        return jax.lax.switch(weight["which"].astype(int), self.losses, terms, weight["weight"])

    def objective(self):
        return Objective(self.loss, 8, self.needs, self.pathwise)


@pytest.mark.slow
@pytest.mark.parametrize(("prior", "posterior"), FAMILIES, ids=map(" ".join, FAMILIES))
@pytest.mark.usefixtures("_float64")
def test_what_fits_is_trained_on_numpyro(both, prior, posterior, batch):
    """With eight particles for all."""
    fitting = [row for row in rows_of(prior, posterior) if row["fits"]]
    for enumerated in (False, True):
        rows = [row for row in fitting if (row["estimator"] == "enumeration") == enumerated]
        if not rows:
            continue
        program = realised(both, "numpyro", rows[0], Together(rows))
        state = program.init(batch)
        before = program.terms(state, batch, seed=1, particles=16).elbo().mean()
        first = program.weights(state), program.slots(state)
        for which, row in enumerate(rows):
            state = program.load_slots(program.load_weights(state, first[0]), first[1])
            for step in range(STEPS):
                weight = {"weight": 1.0, "which": float(which)}
                state, info = program.step(state, [batch], both.control(step, weight, RATE))
                assert all(np.isfinite(float(value)) for value in info.values()), (row, info)
            assert program.terms(state, batch, seed=1, particles=16).elbo().mean() > before, row


class Everything:
    """An objective that asks for every field of `Terms`, and for no gradient."""

    def objective(self):
        fields = frozenset({"path", "score", "latent", "prior_draw", "normal"})
        return Objective(lambda terms, weight: -terms.elbo(), 1, fields, pathwise=False)


@pytest.mark.parametrize(("prior", "posterior"), FAMILIES, ids=map(" ".join, FAMILIES))
@pytest.mark.usefixtures("_float64")
def test_both_engines_value_every_divergence_alike(both, prior, posterior, batch):
    """At the same latents, weights and draws of the prior."""
    fitting = [row for row in rows_of(prior, posterior) if row["fits"]]
    programs = [realised(both, engine, fitting[0], Everything()) for engine in both.engines]
    states = [program.init(batch) for program in programs]
    draws = programs[0].draws(states[0], batch, seed=3, particles=4)
    found = []
    for engine, program, state in zip(both.engines, programs, states, strict=True):
        if posterior != "point_mass":  # whose draw is where it is, to the last digit
            program.pair = both.drawing(engine, VAE, draws)
        found.append(program.terms(state, batch, seed=3, particles=4))
    found[1] = found[1]._replace(prior_draw=found[0].prior_draw)
    for row in fitting:
        divergence = parse(recipe(row)).divergence
        ours, theirs = (divergence.reported(terms, 0.7) for terms in found)
        np.testing.assert_allclose(ours, theirs, rtol=1e-7, atol=1e-9, err_msg=str(row))


def test_what_does_not_fit_is_refused_with_what_would():
    refused = [row for row in ROWS if not row["fits"]]
    assert len(refused) > len(ROWS) / 2
    for row in refused:
        with pytest.raises(BadInput) as caught:
            parse(recipe(row))
        sentence = str(caught.value)
        assert sentence.endswith(row["why"])
        named = [
            kind
            for kind in (*kinds(Prior), *kinds(Posterior), *kinds(Divergence))
            if kind in sentence.partition("use ")[2]
        ]
        assert any(replaced(row, kind) for kind in named), sentence


def replaced(row, kind):
    """Whether the row fits, or comes nearer to it, with one kind in place of its own."""
    others = [other for other in ROWS if sum(row[key] != other[key] for key in KEYS) <= 2 and kind in other.values()]
    return any(other["fits"] or other["why"] != row["why"] for other in others)
