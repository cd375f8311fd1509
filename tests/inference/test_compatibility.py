"""The compatibility matrix says of every combination whether it fits, and a recipe is refused exactly where it does not."""

from __future__ import annotations

import pytest

from guidebook.guides import Posterior
from guidebook.inference import compatibility
from guidebook.inference.catalogue import catalogue
from guidebook.inference.divergences import Divergence
from guidebook.inference.recipe import parse
from guidebook.models import BadInput, Prior

MATRIX = list(compatibility.matrix())


def recipe(row):
    divergence = {"kind": row["divergence"]} | ({"estimator": row["estimator"]} if row["estimator"] else {})
    required = compatibility.kinds(Divergence)[row["divergence"]].model_fields
    divergence |= {name: 1.0 for name, field in required.items() if field.is_required()}
    return {
        "model": {"prior": {"kind": row["prior"], "dim": 4}},
        "guide": {"posterior": {"kind": row["posterior"]}},
        "divergence": divergence,
        "data": {"corpus": "stdlib_docs"},
    }


def test_every_combination_is_in_it_once():
    priors, posteriors = compatibility.kinds(Prior), compatibility.kinds(Posterior)
    assert {(row["prior"], row["posterior"]) for row in MATRIX} == {(p, q) for p in priors for q in posteriors}
    of_sequences = {"fivo"}
    assert {row["divergence"] for row in MATRIX} == set(compatibility.kinds(Divergence)) - of_sequences
    assert len({tuple(row[key] for key in ("prior", "posterior", "divergence", "estimator")) for row in MATRIX}) == len(
        MATRIX
    )
    assert catalogue().to_dict()["matrix"] == MATRIX


def test_every_name_has_a_line():
    found = catalogue()
    for table in (found.pairs, *found.specs.values()):
        for name, line in table.items():
            assert line.strip(), name
            assert line[-1] not in ",:", (name, line)


def test_every_part_fits_something():
    for role in ("prior", "posterior", "divergence"):
        assert {row[role] for row in MATRIX} == {row[role] for row in MATRIX if row["fits"]}, role


@pytest.mark.parametrize("row", MATRIX[::23], ids=lambda row: " ".join(str(value) for value in list(row.values())[:4]))
def test_a_recipe_is_refused_exactly_where_the_matrix_says_so(row):
    if row["fits"]:
        assert parse(recipe(row)).divergence.kind == row["divergence"]
        return
    with pytest.raises(BadInput) as refused:
        parse(recipe(row))
    assert row["why"] in str(refused.value)


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        (
            {"posterior": "bernoulli"},
            r"in \{0, 1\}\^Z and the prior 'standard_normal' lives in all of R\^Z: use the prior bernoulli",
        ),
        (
            {"prior": "bernoulli", "posterior": "bernoulli"},
            'no gradient through its draws .* use kl with estimator = "score"',
        ),
        (
            {"estimator": "enumeration"},
            'in all of R.Z: use the posterior bernoulli or categorical, or estimator = "ana',
        ),
        (
            {"prior": "bernoulli", "posterior": "relaxed_bernoulli", "estimator": "enumeration"},
            'draws relaxed ones: use the posterior bernoulli, or estimator = "analytic"',
        ),
        ({"divergence": "geometric_jensen_shannon", "posterior": "laplace"}, "formula for diagonal normals only"),
        ({"divergence": "fisher", "prior": "gaussian_mixture"}, "formula for diagonal normals only"),
        ({"divergence": "stein", "posterior": "laplace"}, "formula for diagonal normals only"),
    ],
)
def test_the_sentence_says_what_would_fit(changed, sentence):
    row = {"prior": "standard_normal", "posterior": "diagonal_normal", "divergence": "kl", "estimator": None} | changed
    with pytest.raises(BadInput, match=sentence):
        parse(recipe(row))


def test_unrounded_draws_have_no_mass_to_weigh():
    soft = {"kind": "relaxed_categorical", "straight_through": False}
    for divergence in ({"kind": "iwae"}, {"kind": "kl", "estimator": "sampled"}, {"kind": "kl", "estimator": "stl"}):
        table = recipe(
            {"prior": "categorical", "posterior": "relaxed_categorical", "divergence": "kl", "estimator": None}
        )
        with pytest.raises(BadInput, match=r"lie between the values that have a mass.*straight_through = true"):
            parse(table | {"guide": {"posterior": soft}, "divergence": divergence})
        parse(table | {"divergence": divergence})
    parse(table | {"guide": {"posterior": soft}, "divergence": {"kind": "kl"}})


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"divergence": {"kind": "svgd"}}, "'svgd' as set compares latents of one datum, .* use the divergence kl or "),
        ({"divergence": {"kind": "info_vae"}}, "'info_vae' as set compares latents of one datum"),
        ({"fit": {"consistency": {"noise": 0.1}}}, "fit.consistency is of data without steps, and the pair 'vrnn' is"),
    ],
)
def test_what_does_not_fit_the_steps_of_a_sequence_is_refused(settings, why):
    with pytest.raises(BadInput, match=why):
        parse({"pair": "vrnn", "data": {"corpus": "jsb"}, **settings})


@pytest.mark.parametrize(
    ("divergence", "why"),
    [
        ({"kind": "kl"}, r"divergence\.particles = 2 would be right"),
        (
            {"kind": "kl", "estimator": "sampled", "particles": 2},
            'no gradient through the choice of its atoms.*"weights"',
        ),
        ({"kind": "iwae", "particles": 2}, 'no gradient through the choice of its atoms.*"weights"'),
    ],
)
def test_scored_choices_take_another_draw_and_the_analytic_charge(divergence, why):
    table = {"pair": "nvae", "data": {"corpus": "ptb"}, "guide": {"posterior": {"gradient": "score"}}}
    parse(table | {"divergence": {"kind": "kl", "particles": 2}})
    with pytest.raises(BadInput, match=why):
        parse(table | {"divergence": divergence})
