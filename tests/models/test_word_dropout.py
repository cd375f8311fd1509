"""Word dropout is noise of the data (`batch.inputs`): what it does to the story and to the guide, on both engines."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from guidebook import engines
from guidebook.data import Batches, Sentences, WordTokeniser
from guidebook.data.tokenisers import BOS, UNK
from guidebook.engines.protocol import Settings
from guidebook.guides import PAIRS
from guidebook.inference import KL

torch.set_num_threads(1)
WORDS = ("the", "file", "is", "open", "closed")
TOKENISER = WordTokeniser(WORDS)
# All sentences of one length, so that two of them can exchange their words.
TEXTS = ("the file is open", "the file is closed", "open file is open", "open file is closed")
CELL = {"kind": "lstm", "embedding": 6, "hidden": 7, "initial_scale": 0.9, "embedding_scale": 1.0}


def batch_at(word_keep, seed=0):
    split = Sentences.of([TOKENISER.encode(text) for text in TEXTS], TOKENISER)
    return Batches(split, batch_size=4, seed=seed, shuffle=False, word_keep=word_keep).batch(0)


@pytest.fixture(params=engines.ENGINES)
def begun(request):
    pair = PAIRS["sentence_vae"]
    model = pair.model_spec.model_validate({"prior": {"dim": 2}, "decoder": CELL | {"dropout": 0.0}})
    guide = pair.guide_spec.model_validate({"encoder": CELL})
    networks = pair.realisable(model, guide, TOKENISER.size)
    program = engines.load(request.param).Program(pair, networks, Settings(4, KL().objective()))
    return program, program.init(batch_at(1.0))


def zero_latent(program, state):
    """The weights with q(z | x) = N(0, 1) and a decoder that does not read z: only words are left."""
    weights = program.weights(state)
    embedding = CELL["embedding"]
    weights["decoder.weight_ih"][:, embedding:] = 0.0
    weights["decoder.initial"][:] = 0.0
    return program.load_weights(state, weights)


def test_without_words_a_token_does_not_hang_on_those_before(begun):
    """All inputs unk: log p(x) is a sum of one term per place, so two sentences may exchange their first word."""
    program, state = begun
    state = zero_latent(program, state)
    hidden, whole = batch_at(0.0), batch_at(1.0)
    assert (hidden["inputs"][:, 0] == BOS).all()
    assert (hidden["inputs"][:, 1:] == UNK).all()
    for batch, independent in ((hidden, True), (whole, False)):
        a, b, c, d = program.terms(state, batch, seed=0).log_likelihood["x"][0]
        # the + open, the + closed, open + open, open + closed; the words between are the same
        assert (abs((a - b) - (c - d)) < 1e-4) == independent


def test_the_guide_reads_the_whole_sentence(begun):
    program, state = begun
    posteriors = [program.posterior(state, batch_at(keep))["z"] for keep in (1.0, 0.5, 0.0)]
    for q in posteriors[1:]:
        np.testing.assert_array_equal(q.loc, posteriors[0].loc)
        np.testing.assert_array_equal(q.scale, posteriors[0].scale)


def test_targets_are_never_hidden():
    for keep in (0.0, 0.5, 1.0):
        np.testing.assert_array_equal(batch_at(keep)["targets"], batch_at(1.0)["targets"])
    np.testing.assert_array_equal(batch_at(1.0)["inputs"], batch_at(1.0)["tokens"][:, :-1])
