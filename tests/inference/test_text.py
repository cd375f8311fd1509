from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from guidebook.data import Data, Sentences, WordTokeniser
from guidebook.engines.protocol import Posterior
from guidebook.guides import PAIRS, Pair
from guidebook.inference.strategies import Beam, Sample
from guidebook.inference.text import corpus_bleu, encoded, interpolate, reconstruct, sample
from guidebook.models.errors import BadInput

SENTENCE_VAE, LANGUAGE_MODEL = PAIRS["sentence_vae"], PAIRS["language_model"]
WORDS = ("the", "file", "is", "closed", ".")
SENTENCES = ("the file is closed .", "the file .", "is the file closed")


class Copier:
    """A latent that is the sentence itself, word by word, so that decoding the mean gives it back."""

    width = 8

    def posterior(self, state, batch):
        loc = np.zeros((len(batch["weight"]), self.width))
        length = min(self.width, batch["targets"].shape[1])
        loc[:, :length] = batch["targets"][:, :length]
        return {"z": Posterior("normal", loc, np.full(loc.shape, 1e-6))}

    def draws(self, state, batch, *, seed, particles):
        return {"z": self.posterior(state, batch)["z"].loc[None] + 1e-6 * np.random.default_rng(seed).random()}

    def prior_draws(self, state, *, seed, rows):
        return np.random.default_rng(seed).integers(4, 9, (rows, self.width)).astype(float)

    def decode_start(self, state, latent, rows, steps):
        return np.zeros((rows, self.width)) if latent is None else latent

    def decode_step(self, state, cache, tokens):
        word = np.rint(cache[:, :1])
        logits = -10.0 * np.abs(np.arange(9) - np.where(word == 0, 2, word))
        return np.concatenate([cache[:, 1:], np.full((len(cache), 1), 2.0)], 1), logits

    def decode_reorder(self, cache, index):
        return cache[index]


@pytest.fixture
def run():
    tokeniser = WordTokeniser(WORDS)
    test = Sentences.of([tokeniser.encode(text) for text in SENTENCES], tokeniser)
    return SimpleNamespace(
        folder=Path("runs/one"),
        pair=SENTENCE_VAE,
        recipe=SimpleNamespace(data=Data(max_words=20), model=None),
        tokeniser=tokeniser,
        corpus=SimpleNamespace(test=test, valid=test, train=test),
        program=Copier(),
        state=None,
    )


def other(run, **changes):
    return SimpleNamespace(**{**vars(run), **changes})


@pytest.mark.parametrize("latent", ["mean", "draw"])
def test_reconstructs_a_split(run, latent):
    found = reconstruct(run, latent=latent)
    assert found.reconstructions == list(SENTENCES) == found.seen
    assert found.bleu == pytest.approx(100.0)
    assert found.exact == 1.0
    assert found.unknown == []
    assert len(reconstruct(run, split="valid", count=2).sentences) == 2


def test_unknown_words_become_unk_and_are_told(run):
    found = reconstruct(run, ["the door is closed .", "The File is Closed."])
    assert found.unknown == ["door"]
    assert found.seen == ["the <unk> is closed .", "the file is closed ."]
    assert "door" in repr(found)
    assert found.reconstructions == found.seen


def test_interpolation_starts_and_ends_at_its_ends(run):
    found = interpolate(run, "the file .", "is the file closed", 5)
    assert found.weights == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert found.sentences[0] == "the file ."
    assert found.sentences[-1] == "is the file closed"


@pytest.mark.parametrize("strategy", [None, Beam(width=2), Sample(top_k=1)])
def test_samples(run, strategy):
    found = sample(run, 4, strategy=strategy, seed=3)
    assert len(found.sentences) == len(found.scores) == 4
    assert found.sentences == sample(run, 4, strategy=strategy, seed=3).sentences
    assert found.sentences != sample(run, 4, strategy=strategy, seed=4).sentences


def test_a_language_model_samples_without_a_latent(run):
    assert len(sample(other(run, pair=LANGUAGE_MODEL), 3).sentences) == 3


@pytest.mark.parametrize("made", [lambda run: sample(run, 2), reconstruct, lambda run: interpolate(run, "the", "file")])
def test_results_are_json_and_readable(run, made):
    found = made(run)
    json.dumps(found.to_dict(), allow_nan=False)
    assert all(text in repr(found) for text in (*found.header, *found.to_dict()["sentences"]))
    assert "<table>" in found._repr_html_()


@pytest.mark.parametrize(
    ("call", "pair", "word"),
    [
        (reconstruct, LANGUAGE_MODEL, "no latent"),
        (lambda run: interpolate(run, "a", "b"), LANGUAGE_MODEL, "no latent"),
        (sample, Pair(print, print), "arrays"),
        (reconstruct, Pair(print, print), "arrays"),
        (lambda run: reconstruct(run, ["the", "  "]), SENTENCE_VAE, "no word"),
        (lambda run: reconstruct(run, ["the " * 21]), SENTENCE_VAE, "21 words"),
        (lambda run: reconstruct(run, latent="mode"), SENTENCE_VAE, "'mode'"),
        (lambda run: reconstruct(run, []), SENTENCE_VAE, "no sentence to reconstruct"),
        (lambda run: reconstruct(run, count=0), SENTENCE_VAE, "no sentence to reconstruct"),
        (lambda run: reconstruct(run, ["the"], max_words=0), SENTENCE_VAE, "max_words is 0"),
        (lambda run: interpolate(run, "the", "file", max_words=0), SENTENCE_VAE, "max_words is 0"),
        (lambda run: interpolate(run, "", "file"), SENTENCE_VAE, "the sentence '' has no word"),
        (lambda run: interpolate(run, "the", "file", 1), SENTENCE_VAE, "at least 2"),
        (lambda run: sample(run, 0), SENTENCE_VAE, "at least 1"),
    ],
)
def test_refusals_are_one_clear_sentence(run, call, pair, word):
    with pytest.raises(BadInput, match=word) as caught:
        call(other(run, pair=pair))
    assert "\n" not in str(caught.value)


def test_lower_casing_follows_the_recipe(run):
    lower = other(run, recipe=SimpleNamespace(data=Data(lowercase=True)))
    assert encoded(lower, ["THE FILE"]) == ([[4, 5]], [])


def test_bleu_of_a_known_pair():
    """4-gram precisions 3/4, 2/3, 1/2, then 0 (smoothed): sacrebleu's own figure; and perfect agreement."""
    score, signature = corpus_bleu(["the file is closed"], ["the file is closed"])
    assert score == pytest.approx(100.0)
    assert "tok:none" in signature
    assert corpus_bleu(["the file is open"], ["the file is closed"])[0] < 60
