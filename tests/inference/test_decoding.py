from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from guidebook.inference.decoding import decode, decode_scored
from guidebook.inference.probabilities import log_softmax, word_probabilities
from guidebook.inference.strategies import Beam, Greedy, Sample
from guidebook.models.errors import BadInput

PAD, BOS, EOS, UNK = range(4)


@pytest.fixture
def toy(toys):
    return toys.BigramToy()


def latents(rows, seed=3):
    return np.random.default_rng(seed).normal(size=(rows, 1))


def log_prob(toy, toys, z, words):
    return toy.likelihood(np.asarray(z)[None], toys.sentence_batch([words]))[0]


def all_sentences(toy, max_words):
    for length in range(max_words + 1):
        yield from itertools.product(range(UNK, toy.table.shape[0]), repeat=length)


@pytest.mark.parametrize("strategy", [Greedy(), Sample(), Beam(width=3), Beam(width=4, length_penalty=1.0)])
def test_scores_are_the_models_own_and_cached_equals_recomputed(toy, toys, strategy):
    z = latents(9)
    found = decode_scored(toy, None, z, strategy, max_words=6, seed=1)
    expected = [log_prob(toy, toys, z[n], words) for n, words in enumerate(found.sentences)]
    np.testing.assert_allclose(found.scores, expected, rtol=1e-12)


def test_greedy_takes_the_best_word_at_each_step(toy):
    z = latents(6)
    for n, words in enumerate(decode(toy, None, z, Greedy(), max_words=5)):
        previous, expected = BOS, []
        while len(expected) < 5:
            logits = toy.logits(previous, z[n])
            logits[[PAD, BOS]] = -np.inf
            previous = int(logits.argmax())
            if previous == EOS:
                break
            expected.append(previous)
        assert words == expected


@pytest.mark.parametrize("seed", range(4))
def test_greedy_is_a_beam_of_one(toys, seed):
    toy, z = toys.BigramToy(vocabulary=12, seed=seed), latents(20, seed)
    greedy, beam = (decode_scored(toy, None, z, s, max_words=8) for s in (Greedy(), Beam(width=1)))
    assert greedy.sentences == beam.sentences
    np.testing.assert_allclose(greedy.scores, beam.scores)


@pytest.mark.parametrize("seed", range(4))
def test_a_beam_that_holds_every_prefix_finds_the_best_sentence(toys, seed):
    toy, z = toys.BigramToy(vocabulary=6, seed=seed, strength=2.0), latents(3, seed)
    beam = decode_scored(toy, None, z, Beam(width=40), max_words=3)
    greedy = decode_scored(toy, None, z, Greedy(), max_words=3)
    for n in range(3):
        scores = {words: log_prob(toy, toys, z[n], list(words)) for words in all_sentences(toy, 3)}
        best = max(scores, key=scores.__getitem__)
        assert beam.sentences[n] == list(best)
        assert beam.scores[n] == pytest.approx(scores[best])
    assert (beam.scores >= greedy.scores - 1e-12).all()


def test_length_penalty_ranks_by_the_penalised_score(toys):
    toy, z = toys.BigramToy(vocabulary=6, seed=5, strength=2.0), latents(3)
    found = decode(toy, None, z, Beam(width=60, length_penalty=1.5), max_words=3)
    for n in range(3):
        scores = {
            words: log_prob(toy, toys, z[n], list(words)) / ((5 + len(words) + 1) / 6) ** 1.5
            for words in all_sentences(toy, 3)
        }
        assert found[n] == list(max(scores, key=scores.__getitem__))


@pytest.mark.parametrize(
    "strategy",
    [
        Sample(),
        Sample(temperature=0.5),
        Sample(top_k=3),
        Sample(top_p=0.7),
        Sample(temperature=2.0, top_k=4, top_p=0.8),
    ],
)
def test_sampled_first_words_follow_the_softmax(toys, strategy):
    """χ² with a false-alarm chance of 1e-4 for each strategy, over a fixed seed."""
    toy, rows = toys.BigramToy(vocabulary=9), 20_000
    z = np.full((rows, 1), 0.4)
    firsts = [(words or [EOS])[0] for words in decode(toy, None, z, strategy, max_words=1, seed=7, rows_per_call=5000)]
    logits = toy.logits(BOS, z[:1])
    logits[:, [PAD, BOS]] = -np.inf
    expected = word_probabilities(log_softmax(logits), strategy)[0]
    counts = np.bincount(firsts, minlength=9)
    assert (counts[expected == 0] == 0).all()
    kept = expected > 0
    assert chisquare(counts[kept], rows * expected[kept]).pvalue > 1e-4


def test_whole_samples_follow_the_models_distribution(toys):
    toy, rows = toys.BigramToy(vocabulary=5, seed=2), 20_000
    toy.table[:, [PAD, BOS]] = -40.0
    toy.tilt[:, [PAD, BOS]] = 0.0
    found = decode(toy, None, np.zeros((rows, 1)), Sample(), max_words=3, seed=1, rows_per_call=10_000)
    short = [words for words in all_sentences(toy, 2)]
    expected = np.array([np.exp(log_prob(toy, toys, [0.0], list(words))) for words in short])
    counts = np.array([sum(tuple(words) == one for words in found) for one in short])
    rest = rows - counts.sum()
    assert chisquare([*counts, rest], [*(rows * expected), rows * (1 - expected.sum())]).pvalue > 1e-4


@given(
    st.lists(st.floats(-5, 5), min_size=3, max_size=12),
    st.integers(1, 14),
    st.floats(0.01, 1.0),
    st.floats(0.1, 4.0),
)
@settings(max_examples=200)
def test_restrictions_keep_exactly_the_right_words(logits, top_k, top_p, temperature):
    log_probs = log_softmax(np.array([logits]))
    found = word_probabilities(log_probs, Sample(temperature=temperature, top_k=top_k, top_p=top_p))[0]
    scaled = np.exp(log_softmax(log_probs / temperature))[0]
    order = sorted(range(len(logits)), key=lambda i: (-scaled[i], i))[:top_k]
    chosen, mass, total = [], 0.0, sum(scaled[i] for i in order)
    for i in order:
        chosen.append(i)
        mass += scaled[i] / total
        if mass >= top_p - 1e-12:
            break
    kept = set(np.flatnonzero(found))
    borderline = abs(mass - top_p) < 1e-9
    assert kept == set(chosen) or borderline
    np.testing.assert_allclose(found.sum(), 1.0)
    if not borderline:
        np.testing.assert_allclose(found[chosen], scaled[chosen] / scaled[chosen].sum(), rtol=1e-9)


@pytest.mark.parametrize("strategy", [Greedy(), Sample(), Beam(width=3)])
def test_never_emits_what_it_must_not(toys, strategy):
    toy = toys.BigramToy(seed=4)
    toy.table[:, [PAD, BOS]] += 30.0
    toy.table[:, UNK] += 10.0
    free = decode(toy, None, latents(30), strategy, max_words=6)
    strict = decode(toy, None, latents(30), strategy.model_copy(update={"allow_unknown": False}), max_words=6)
    assert {UNK} <= {i for words in free for i in words}
    assert not {PAD, BOS, EOS} & {i for words in free for i in words}
    assert not {PAD, BOS, EOS, UNK} & {i for words in strict for i in words}


@pytest.mark.parametrize("strategy", [Greedy(), Sample(), Beam(width=3)])
def test_stops_when_all_have_ended(toys, strategy):
    toy = toys.BigramToy()
    toy.table[:, EOS] = 1000.0
    assert decode(toy, None, latents(5), strategy, max_words=50) == [[]] * 5
    assert toy.steps == 1


@pytest.mark.parametrize("strategy", [Greedy(), Sample(), Beam(width=3)])
def test_a_sentence_without_end_is_ended(toys, strategy):
    toy = toys.BigramToy()
    toy.table[:, EOS] = -1000.0
    found = decode_scored(toy, None, latents(5), strategy, max_words=4)
    assert [len(words) for words in found.sentences] == [4] * 5
    assert np.isfinite(found.scores).all()
    assert toy.steps == 5


@pytest.mark.parametrize("strategy", [Greedy(), Sample(top_k=4), Beam(width=3)])
def test_a_batch_decodes_as_its_sentences_do_alone(toy, strategy):
    z = latents(11)
    together = decode_scored(toy, None, z, strategy, max_words=6, seed=5)
    chunked = decode_scored(toy, None, z, strategy, max_words=6, seed=5, rows_per_call=4)
    assert together.sentences == chunked.sentences
    np.testing.assert_array_equal(together.scores, chunked.scores)
    if not isinstance(strategy, Sample):
        alone = [decode(toy, None, z[n : n + 1], strategy, max_words=6)[0] for n in range(11)]
        assert together.sentences == alone


def test_seeds(toy):
    z = np.zeros((40, 1))
    one, again, other = (decode(toy, None, z, Sample(), max_words=6, seed=seed) for seed in (1, 1, 2))
    assert one == again != other
    assert len({tuple(words) for words in one}) > 5


def test_without_latents(toys):
    toy = toys.BigramToy(latent=False)
    assert len(decode(toy, None, None, Sample(), max_words=4, count=7)) == 7
    assert decode(toy, None, np.zeros((0, 1)), Greedy(), max_words=4) == []
    with pytest.raises(BadInput, match="count"):
        decode(toy, None, None, Greedy(), max_words=4)
    with pytest.raises(BadInput, match="max_words"):
        decode(toy, None, None, Greedy(), max_words=0, count=1)
    with pytest.raises(BadInput, match="shape"):
        decode(toy, None, np.zeros(3), Greedy(), max_words=2)


@pytest.mark.parametrize("wrong", [{"temperature": 0}, {"top_k": 0}, {"top_p": 0.0}, {"top_p": 1.1}, {"typo": 1}])
def test_strategies_refuse_nonsense(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Sample(**wrong)
