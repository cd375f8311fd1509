"""What every sentence pair must keep to, through the whole program: padding, rows, causality, particles, dropout."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from guidebook.guides import PAIRS

V, Z, WIDTH, ROWS = 9, 2, 5, 4
EVENTS = {"z": (Z,), "F": (2, WIDTH + 4, Z + 1)}
"""Of the noise of latents, by site; of a random measure as many places and components as any batch here has."""
TEXT = [name for name, pair in PAIRS.items() if pair.text]
LATENT = [name for name in TEXT if PAIRS[name].guide is not None]
# One shape for all examples: the fixture is a stateless program, which hypothesis may use again.
FEW = settings(
    max_examples=6,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
WORDS = st.lists(st.lists(st.integers(3, V - 1), max_size=WIDTH - 1).map(tuple), min_size=ROWS, max_size=ROWS)
pytestmark = pytest.mark.usefixtures("_float64")


def small(pair, spec, attended, **decoder):
    recurrent = {"kind": "gru", "embedding": 4, "hidden": 5, "initial_scale": 0.8, "embedding_scale": 1.0}
    stack = {"hidden": 4, "layers": 1, "heads": 2, "feedforward": 5, "dropout": 0.0}
    parts = {
        "sentence_vae": {
            "prior": {"dim": Z},
            "decoder": recurrent | {"dropout": 0.0} | decoder,
            "encoder": recurrent,
            "posterior": {"initial_scale": 1.0},
        },
        "language_model": {"decoder": recurrent | {"dropout": 0.0} | decoder},
        "nvae": {
            "prior": {"kind": attended, "dim": Z},
            "decoder": stack | decoder,
            "longest": 10,
            "encoder": stack,
            "posterior": {"kind": attended},
        },
    }[pair.name]
    return spec.model_validate({name: part for name, part in parts.items() if name in spec.model_fields})


def begun(both, engine, pair, batch, noise=None, attended="dirichlet_process", **decoder):
    """attended: what the decoder of an nvae attends to."""
    tables = small(pair, pair.model_spec, attended, **decoder), small(pair, pair.guide_spec, attended)
    networks = pair.realisable(*tables, V)
    pair = pair if noise is None else both.replaying(engine, pair, noise)
    program = both.program(engine, pair, networks, data_size=ROWS)
    return program, program.init(batch)


light = partial(begun, attended="normal_vectors")
"""For many examples: a random measure takes JAX long to compile. `test_nvae.py` has one example of those."""


def noise_of(pair, rows, seed=0):
    sites = pair.sites if pair.guide is not None else {}
    rng = np.random.default_rng(seed)
    return {site: rng.standard_normal((rows, *EVENTS[site])) for site in sites if site in EVENTS}


def per_row(program, state, batch, rows=slice(None)):
    """Every term of chosen rows, by name."""
    found = program.terms(state, batch, seed=0)
    tables = {
        f"{table}/{site}": value[:, rows]
        for table in ("log_likelihood", "log_prior", "log_posterior")
        for site, value in getattr(found, table).items()
    }
    tables |= {f"kl/{site}": value[rows] for site, value in found.kl.items()}
    posterior = program.posterior(state, batch)
    if "F" in posterior:
        return tables | {"q/F": program.mean_measures(state, batch)["F"][rows, :WIDTH]}
    return tables | {f"q/{site}": np.stack([q.loc, q.scale])[:, rows] for site, q in posterior.items()}


def assert_equal(ours, theirs, **tolerance):
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        np.testing.assert_allclose(value, theirs[name], err_msg=name, **({"rtol": 1e-10, "atol": 1e-12} | tolerance))


@pytest.mark.parametrize("name", TEXT)
@FEW
@given(words=WORDS)
def test_padding_changes_nothing(both, engine, name, words):
    pair = PAIRS[name]
    noise = noise_of(pair, ROWS)
    batch, wider = (both.sentences(*words, width=width) for width in (WIDTH, WIDTH + 3))
    assert_equal(
        per_row(*light(both, engine, pair, batch, noise), batch),
        per_row(*light(both, engine, pair, wider, noise), wider),
    )
    dirty = {array: wider[array].copy() for array in wider}
    beyond = np.arange(WIDTH + 3) >= wider["lengths"][:, None]
    dirty["inputs"][beyond] = dirty["targets"][beyond] = V - 1
    dirty["tokens"][:, 1:][beyond] = V - 1
    assert_equal(
        both.gradients(*light(both, engine, pair, batch, noise), batch)[0],
        both.gradients(*light(both, engine, pair, dirty, noise), dirty)[0],
        rtol=1e-9,
    )


@pytest.mark.parametrize("name", TEXT)
def test_filler_rows_have_no_gradient(both, engine, name):
    pair = PAIRS[name]
    words = [(4, 5), (6,), (7, 8, 3), ()]
    noise = noise_of(pair, ROWS + 2)
    plain, filled = both.sentences(*words), both.sentences(*words, filler=2)
    alone, info = both.gradients(
        *begun(both, engine, pair, plain, {site: value[:ROWS] for site, value in noise.items()}), plain
    )
    together, other = both.gradients(*begun(both, engine, pair, filled, noise), filled)
    scale = (ROWS + 2) / ROWS  # the mean is over the batch's fixed number of rows: a sentence weighs the same in all
    assert_equal(alone, {key: value * scale for key, value in together.items()}, rtol=1e-9)
    assert other["rows"] == info["rows"] == ROWS
    assert other["objective"] == pytest.approx(info["objective"], rel=1e-10)


@pytest.mark.parametrize("name", TEXT)
@FEW
@given(words=WORDS, others=WORDS, row=st.integers(0, ROWS - 1))
def test_a_row_does_not_see_its_neighbours(both, engine, name, words, others, row):
    pair = PAIRS[name]
    noise = noise_of(pair, ROWS)
    elsewhere = {site: -value for site, value in noise.items()}
    for site, value in noise.items():
        elsewhere[site][row] = value[row]
    mixed = [words[n] if n == row else others[n] for n in range(ROWS)]
    first, second = (both.sentences(*chosen, width=WIDTH) for chosen in (words, mixed))
    assert_equal(
        per_row(*light(both, engine, pair, first, noise), first, [row]),
        per_row(*light(both, engine, pair, second, elsewhere), second, [row]),
    )
    # The gradient of this row's loss is the same in any company.
    only = (np.arange(ROWS) == row).astype(np.float32)
    assert_equal(
        both.gradients(*light(both, engine, pair, first, noise), first | {"weight": only})[0],
        both.gradients(*light(both, engine, pair, second, elsewhere), second | {"weight": only})[0],
        rtol=1e-9,
    )


def free(ppl, batch, nets):
    """q(z | x) = N(0, I): with replayed noise z does not hang on the sentence."""
    with ppl.plate("sentences", batch.data_size, subsample=batch.index), ppl.mask(batch.real):
        ppl.sample("z", ppl.dist.Normal(ppl.zeros((len(batch.index), Z)), 1.0).to_event(1))


def free_measure(ppl, batch, nets):
    """q(F | x) of nothing: F does not hang on the sentence, nor on how much of it counts."""
    posterior = ppl.module("posterior", nets["posterior"])
    with ppl.plate("sentences", batch.data_size, subsample=batch.index), ppl.mask(batch.real):
        h = ppl.zeros((ROWS, WIDTH, 4))
        ppl.sample("F", posterior(h, 0 * batch.lengths + WIDTH))


def step_by_step(both, engine, pair, batch, noise):
    """log p(x_t | x_<t, z), (B, T), from the whole program: sentences of one more word each time."""
    program, state = begun(both, engine, pair, batch, noise)
    sums = [
        program.terms(state, batch | {"lengths": np.full(ROWS, upto, np.int32)}, seed=0).log_likelihood["x"][0]
        for upto in range(WIDTH + 1)
    ]
    return np.diff(np.array(sums), axis=0).T


@pytest.mark.parametrize("name", TEXT)
@pytest.mark.parametrize("edited", [1, 3])
def test_words_hang_on_the_past_and_on_z_only(both, engine, name, edited):
    pair = PAIRS[name]
    pair = pair if pair.guide is None else replace(pair, guide=free_measure if "F" in pair.sites else free)
    noise = noise_of(pair, ROWS)
    batch = both.sentences(*[[4, 5, 6, 7]] * 2, [8, 4, 3, 3], [6, 6, 6, 6], width=WIDTH)
    other = {array: value.copy() for array, value in batch.items()}
    other["inputs"][:, edited] = 3 + (other["inputs"][:, edited] - 2) % (V - 3)
    before, after = (step_by_step(both, engine, pair, one, noise) for one in (batch, other))
    np.testing.assert_allclose(after[:, :edited], before[:, :edited], rtol=1e-12)
    assert (np.abs(after[:, edited:] - before[:, edited:]) > 1e-9).all()
    if noise:
        moved = step_by_step(both, engine, pair, batch, {site: value + 1.0 for site, value in noise.items()})
        assert (np.abs(moved - before) > 1e-9).all()


@pytest.mark.parametrize("name", LATENT)
def test_particles_are_a_loop_over_particles(both, engine, name):
    """One pass with S particles gives the terms of S passes with one."""
    pair, particles = PAIRS[name], 3
    batch = both.sentences((4, 5), (6,), (7, 8, 3), (), filler=1)
    rng = np.random.default_rng(1)
    noise = {site: rng.standard_normal((particles, ROWS + 1, *EVENTS[site])) for site in noise_of(pair, 1)}
    program, state = begun(both, engine, pair, batch, noise)
    together = program.terms(state, batch, seed=0, particles=particles)
    for number in range(particles):
        one = begun(both, engine, pair, batch, {site: value[number] for site, value in noise.items()})
        alone = one[0].terms(one[1], batch, seed=0)
        np.testing.assert_allclose(together.elbo()[number], alone.elbo()[0], rtol=1e-10)
        np.testing.assert_allclose(together.log_weight()[number], alone.log_weight()[0], rtol=1e-10)


@pytest.mark.parametrize("name", TEXT)
def test_dropout_is_for_training_only(both, engine, name):
    """Terms do not change from call to call; steps of another number draw other noise, of the same number the same."""
    pair = PAIRS[name]
    noise = noise_of(pair, ROWS)
    batch = both.sentences((4, 5), (6,), (7, 8, 3), ())
    plain = begun(both, engine, pair, batch, noise)
    program, state = begun(both, engine, pair, batch, noise, dropout=0.5)
    assert_equal(per_row(program, state, batch), per_row(*plain, batch))
    found = []
    for step in (0, 0, 1):
        program, state = begun(both, engine, pair, batch, noise, dropout=0.5)
        _, info = program.step(state, [batch], both.control(step, rate=0.0))
        found.append(float(info["log_likelihood/x"]))
    assert found[0] == found[1] != found[2]
