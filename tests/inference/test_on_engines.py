"""The engine-free parts on the real engines: what they rely on, and that both engines are judged alike."""

from __future__ import annotations

import numpy as np
import pytest

from guidebook.engines import installed, load
from guidebook.engines.protocol import Settings
from guidebook.guides import PAIRS
from guidebook.inference.decoding import decode_scored
from guidebook.inference.divergences import KL
from guidebook.inference.evaluate import evaluate_program
from guidebook.inference.export import program_to_arviz
from guidebook.inference.metrics import normal_log_density
from guidebook.inference.probabilities import log_softmax
from guidebook.inference.strategies import Beam, Greedy

VOCABULARY = 12
SENTENCES = [[4, 5], [6], [5, 5, 6], [7, 8, 9, 4, 4], [10, 11, 3], [4, 4]]
CELL = {"kind": "lstm", "embedding": 6, "hidden": 7, "initial_scale": 0.8, "embedding_scale": 1.0}


@pytest.fixture(scope="module", params=installed())
def fitted(request, toys):
    """A small sentence VAE of random weights on an engine, with two batches of its sentences."""
    pair = PAIRS["sentence_vae"]
    model = pair.model_spec(prior={"dim": 3}, decoder=CELL)
    guide = pair.guide_spec(encoder=CELL, posterior={"initial_scale": 1.0})
    settings = Settings(data_size=len(SENTENCES), objective=KL().objective())
    program = load(request.param).Program(pair, pair.realisable(model, guide, VOCABULARY), settings)
    batches = [
        toys.sentence_batch(SENTENCES[:3], width=6, filler=1),
        toys.sentence_batch(SENTENCES[3:], width=6, filler=1),
    ]
    batches[1]["index"] = np.array([3, 4, 5, 3])
    return program, program.init(batches[0]), batches


@pytest.mark.parametrize("particles", [1, 3])
def test_terms_and_draws_of_one_seed_are_of_the_same_latents(fitted, particles):
    program, state, (batch, _) = fitted
    terms = program.terms(state, batch, seed=5, particles=particles)
    z = program.draws(state, batch, seed=5, particles=particles)["z"]
    q = program.posterior(state, batch)["z"]
    found = terms.log_posterior["z"]
    np.testing.assert_allclose(found[:, :3], normal_log_density(z, q.loc, q.scale)[:, :3], atol=1e-4)


def test_the_decoder_word_by_word_is_the_teacher_forced_likelihood(fitted):
    program, state, (batch, _) = fitted
    z = program.draws(state, batch, seed=5, particles=1)["z"][0]
    likelihood = program.terms(state, batch, seed=5, particles=1).log_likelihood["x"][0]
    cache, walked = program.decode_start(state, z, 4, batch["targets"].shape[1]), np.zeros(4)
    for t in range(batch["targets"].shape[1]):
        cache, logits = program.decode_step(state, cache, batch["inputs"][:, t])
        log_probs = log_softmax(logits)[np.arange(4), batch["targets"][:, t]]
        walked += np.where(t < batch["lengths"], log_probs, 0.0)
    np.testing.assert_allclose(walked[:3], likelihood[:3], rtol=1e-4)


def test_beams_of_one_are_greedy(fitted):
    program, state, (batch, _) = fitted
    loc = program.posterior(state, batch)["z"].loc[:3]
    greedy, beam = (decode_scored(program, state, loc, one, max_words=5) for one in (Greedy(), Beam(width=1)))
    assert greedy.sentences == beam.sentences
    np.testing.assert_allclose(greedy.scores, beam.scores, rtol=1e-5)


def test_exported_densities_belong_to_the_exported_draws(fitted):
    program, state, batches = fitted
    tree = program_to_arviz(
        program, state, batches, draws=5, plate="sentences", sites=PAIRS["sentence_vae"].sites, text=True
    )
    loc, scale = (np.concatenate([program.posterior(state, batch)["z"][i][:3] for batch in batches]) for i in (1, 2))
    z = tree["posterior"]["z"].values
    np.testing.assert_allclose(tree["sample_stats"]["log_q"], normal_log_density(z, loc, scale), atol=1e-4)
    prior = normal_log_density(z, np.zeros(3), np.ones(3))
    lp = tree["log_likelihood"]["x"].values + prior
    np.testing.assert_allclose(tree["sample_stats"]["lp"], lp, atol=1e-4)


def test_evaluation_is_consistent(fitted):
    program, state, batches = fitted
    found = evaluate_program(program, state, batches, particles=200, rows=64, seed=0, text=True, unit="word")
    assert found.sentences == 6
    assert found.tokens == sum(len(words) + 1 for words in SENTENCES)
    assert found.iw_nll < -found.elbo + 0.05
    assert found.kl_per_dimension is not None
    assert found.kl == pytest.approx(sum(found.kl_per_dimension))
    assert found.sites["z"].kl_from == "analytic"
    assert found.mi is not None
    assert found.mi <= np.log(6)


@pytest.mark.skipif(len(installed()) < 2, reason="needs both engines")
def test_both_engines_judge_the_same_weights_alike(toys):
    pair, batch = PAIRS["sentence_vae"], toys.sentence_batch(SENTENCES)
    model = pair.model_spec(prior={"dim": 3}, decoder=CELL)
    guide = pair.guide_spec(encoder=CELL, posterior={"initial_scale": 1.0})
    found, words = [], []
    for engine in installed():
        settings = Settings(data_size=6, objective=KL().objective())
        program = load(engine).Program(pair, pair.realisable(model, guide, VOCABULARY), settings)
        state = program.init(batch)
        found.append(evaluate_program(program, state, [batch], particles=100, rows=600, seed=0, text=True))
        loc = program.posterior(state, batch)["z"].loc
        words.append(decode_scored(program, state, loc, Beam(width=3), max_words=5).sentences)
    one, other = found
    assert one.kl == pytest.approx(other.kl, rel=1e-5)
    np.testing.assert_allclose(one.kl_per_dimension, other.kl_per_dimension, rtol=1e-4)
    errors = np.hypot(one.iw_nll_standard_error, other.iw_nll_standard_error)
    assert abs(one.iw_nll - other.iw_nll) < 4 * errors
    assert one.active_units == other.active_units
    assert words[0] == words[1]
