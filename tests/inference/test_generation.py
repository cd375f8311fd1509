"""Samples and interpolations, judged under a language model: by hand, by stepping the decoder, and on both engines."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from guidebook.data import BOS, EOS, Data, Sentences, WordTokeniser
from guidebook.engines.protocol import Posterior
from guidebook.guides import PAIRS
from guidebook.inference import fit, interpolation_curve, judge_samples, load, reconstruct, sample
from guidebook.inference.perplexities import perplexity_of, perplexity_under
from guidebook.inference.probabilities import log_softmax
from guidebook.inference.strategies import Greedy, Sample
from guidebook.inference.text import between, drawn
from guidebook.models.errors import BadInput

SENTENCES = ([4, 5, 6], [6, 4], [5])


class Endless:
    """Every sentence from it is empty."""

    def decode_start(self, state, latent, rows, steps):
        return None

    def decode_step(self, state, cache, tokens):
        return cache, np.where(np.arange(7) == EOS, 50.0, 0.0) + np.zeros((len(tokens), 1))


def stub(program, pair="language_model", words="abc", **changes):
    tokeniser = WordTokeniser(list(words))
    corpus = Sentences.of(SENTENCES, tokeniser)
    found = {
        "folder": Path("runs/stub"),
        "pair": PAIRS[pair],
        "recipe": SimpleNamespace(
            data=Data(max_words=20), engine="pyro", fit=SimpleNamespace(seed=0, batch_size=8), pair=pair, model=None
        ),
        "tokeniser": tokeniser,
        "corpus": SimpleNamespace(test=corpus, valid=corpus, train=corpus),
        "program": program,
        "state": None,
        "lines": [{"step": 3}],
    }
    return SimpleNamespace(**found | changes)


@pytest.fixture
def bigram(toys):
    return stub(toys.BigramToy(vocabulary=7, latent=False))


@pytest.fixture
def vae(toys):
    return stub(toys.BigramToy(vocabulary=7, seed=1), pair="sentence_vae")


def by_hand(table, ids):
    """−log p of a sentence under a bigram of these logits."""
    walk = [BOS, *ids, EOS]
    probabilities = np.exp(table) / np.exp(table).sum(-1, keepdims=True)
    return -sum(np.log(probabilities[a, b]) for a, b in itertools.pairwise(walk))


def stepped(run, ids):
    """−log p of a sentence by stepping the decoder of a run of either engine."""
    cache = run.program.decode_start(run.state, None, 1, len(ids) + 1)
    total = 0.0
    for previous, word in zip([BOS, *ids], [*ids, EOS], strict=True):
        cache, logits = run.program.decode_step(run.state, cache, np.array([previous]))
        total -= float(log_softmax(np.asarray(logits, np.float64))[0, word])
    return total


def test_perplexities_are_those_by_hand(bigram, vae):
    found = judge_samples(vae, bigram, count=150, seed=4, reverse_steps=0)
    samples = drawn(vae, 150, Sample(), 3, 4).sentences
    table = bigram.program.table
    nll, tokens = sum(by_hand(table, ids) for ids in samples), sum(len(ids) + 1 for ids in samples)
    assert (found.forward.sentences, found.forward.tokens) == (150, tokens)
    assert found.forward.value == pytest.approx(np.exp(nll / tokens), rel=1e-12)
    assert found.real.value == pytest.approx(np.exp(sum(by_hand(table, ids) for ids in SENTENCES) / 9), rel=1e-12)
    assert (found.reverse, found.reverse_steps) == (None, None)
    assert found.distinct == len({tuple(ids) for ids in samples}) / 150
    assert found.seen == sum(ids in SENTENCES for ids in samples) / 150
    assert found.empty == sum(not ids for ids in samples) / 150
    assert 0 < found.seen < found.distinct < 1
    assert found.length == pytest.approx(tokens / 150 - 1)
    assert found.data_length == pytest.approx(2.0)
    assert max(map(len, samples)) == 3  # as long as the longest training sentence, and no longer


def test_the_standard_error_is_that_of_the_jackknife():
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, 30, 400)
    nll = 4.0 * tokens + rng.normal(0, 5, 400)
    found = perplexity_of(nll, tokens)
    left_out = np.exp((nll.sum() - nll) / (tokens.sum() - tokens))
    jackknife = np.sqrt(399 / 400 * ((left_out - left_out.mean()) ** 2).sum())
    assert found.value == pytest.approx(np.exp(nll.sum() / tokens.sum()))
    assert found.standard_error == pytest.approx(jackknife, rel=0.02)
    assert perplexity_of(nll[:1], tokens[:1]).standard_error is None


def test_a_model_judged_by_itself_has_the_perplexity_of_its_own_scores(bigram):
    found = judge_samples(bigram, bigram, count=64, reverse_steps=0)
    own = sample(bigram, 64, max_words=3)
    tokens = sum(len(text.split()) + 1 for text in own.sentences)
    assert found.forward.value == pytest.approx(np.exp(-sum(own.scores) / tokens), rel=1e-12)


def test_empty_samples_count_their_end_mark(bigram):
    found = judge_samples(stub(Endless()), bigram, count=5, reverse_steps=0)
    assert (found.empty, found.length, found.distinct, found.seen) == (1.0, 0.0, 0.2, 0.0)
    assert found.forward.tokens == 5
    assert found.forward.value == pytest.approx(np.exp(by_hand(bigram.program.table, [])), rel=1e-12)


def test_results_are_json_and_readable(bigram, vae):
    for found in (
        judge_samples(vae, bigram, count=9, reverse_steps=0),
        interpolation_curve(vae, pairs=2, steps=3, language_model=bigram),
    ):
        assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["pair"] == "sentence_vae"
        assert all(cell in repr(found) for row in found.rows() for cell in row)
        assert "<table>" in found._repr_html_()


def test_interpolation_says_what_is_near_and_what_is_new(bigram):
    """A latent that is the sentence: between its two ends there is one other, which by hand is [5, 4]."""
    run = stub(Copier(), pair="sentence_vae")
    two = Sentences.of([[4, 4], [6]], run.tokeniser)
    run.corpus = SimpleNamespace(test=two, valid=two, train=two)
    found = interpolation_curve(run, pairs=8, steps=3, language_model=bigram)
    assert found.weights == [0.0, 0.5, 1.0]
    assert (found.bleu_a[0], found.bleu_b[-1]) == pytest.approx((100.0, 100.0))
    assert (found.bleu_a[-1], found.bleu_b[0]) == pytest.approx((0.0, 0.0))
    assert found.novel == [0.0, 1.0, 0.0]
    assert (found.perplexity.sentences, found.perplexity.tokens) == (8, 24)
    assert found.perplexity.value == pytest.approx(np.exp(by_hand(bigram.program.table, [5, 4]) / 3), rel=1e-12)
    assert found.picture().axes[0].lines[0].get_ydata().tolist() == found.bleu_a
    assert found.picture().get_suptitle() == found.title


class Copier:
    """z_t = x_t, 2 past the end; what is between 2 and 4 is said as 4."""

    def posterior(self, state, batch):
        loc = np.full((len(batch["weight"]), 4), 2.0)
        words = batch["targets"][:, :4]
        loc[:, : words.shape[1]] = np.where(words > EOS, words, 2.0)
        return {"z": Posterior("normal", loc, np.ones(loc.shape))}

    def decode_start(self, state, latent, rows, steps):
        return latent

    def decode_step(self, state, cache, tokens):
        word = np.where(cache[:, :1] > EOS, np.maximum(cache[:, :1], 4.0), EOS)
        return np.roll(cache, -1, 1), -10.0 * np.abs(np.arange(7) - word)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda run, lm: judge_samples(run, run), "pair 'sentence_vae'.*'language_model' would be right"),
        (lambda run, lm: judge_samples(run, stub(lm.program, words="abd")), "differ in their vocabulary"),
        (lambda run, lm: interpolation_curve(run, language_model=stub(lm.program, words="abd")), "vocabulary"),
        (lambda run, lm: judge_samples(run, lm, count=8), "8 samples are too few.*batches of 8: at least 9"),
        (lambda run, lm: judge_samples(run, lm, count=0, reverse_steps=0), "at least 1"),
        (lambda run, lm: judge_samples(run, stub(lm.program, lines=[])), "say reverse_steps"),
        (lambda run, lm: judge_samples(run, lm, split="tset", reverse_steps=0), "'tset'"),
        (lambda run, lm: judge_samples(stub(None, pair="vae"), lm), "whose data are arrays: judge needs"),
        (lambda run, lm: judge_samples(stub(None, pair="vrnn"), lm), "for sequences there are"),
        (lambda run, lm: interpolation_curve(stub(None, pair="vae")), "whose data are arrays"),
        (lambda run, lm: interpolation_curve(lm), "no latent"),
        (lambda run, lm: interpolation_curve(run, steps=4), "no middle"),
        (lambda run, lm: interpolation_curve(run, pairs=0), "at least 1"),
    ],
)
def test_refusals_are_one_clear_sentence(vae, bigram, call, says):
    with pytest.raises(BadInput, match=says) as caught:
        call(vae, bigram)
    assert "\n" not in str(caught.value)


def test_pairs_of_one_length_are_refused(vae):
    same = Sentences.of([[4], [5]], vae.tokeniser)
    vae.corpus = SimpleNamespace(test=same)
    with pytest.raises(BadInput, match="two lengths"):
        interpolation_curve(vae)


@pytest.fixture(scope="module")
def fitted(tiny, tmp_path_factory):
    """engine → the folders of a sentence VAE and of a language model of the same data."""
    made = {}

    def of(engine):
        if engine not in made:
            out = tmp_path_factory.mktemp(engine)
            language = out / "language.toml"
            language.write_text(LANGUAGE.replace("FOLDER", tiny.parent.as_posix()), encoding="utf-8")
            for name, recipe in {"vae": tiny, "lm": language}.items():
                fit(recipe, "fit.max_steps=6", engine=engine, out=out / name, progress=False)
            made[engine] = out / "vae", out / "lm"
        return tuple(load(folder) for folder in made[engine])

    return of


LANGUAGE = """
pair = "language_model"
[model]
decoder = {kind = "lstm", embedding = 6, hidden = 8, dropout = 0.2}
[data]
corpus = "FOLDER/train.txt"
valid = "FOLDER/valid.txt"
test = "FOLDER/test.txt"
buckets = 2
[fit]
epochs = 2
batch_size = 8
optimiser = {learning_rate = 0.05}
"""


def test_both_perplexities_by_stepping_the_decoders(fitted, engine, tmp_path):
    run, language_model = fitted(engine)
    found = judge_samples(run, language_model, count=20, out=tmp_path / "reverse", progress=False)
    longest = max(run.corpus.train.lengths) - 1
    samples = drawn(run, 20, Sample(), longest, 0).sentences
    real = [ids.tolist() for ids in run.corpus.test]
    tokens = sum(len(ids) + 1 for ids in samples)
    forward = np.exp(sum(stepped(language_model, ids) for ids in samples) / tokens)
    assert (found.forward.sentences, found.forward.tokens) == (20, tokens)
    assert found.forward.value == pytest.approx(forward, rel=1e-5)

    reverse = load(tmp_path / "reverse")
    assert reverse.tokeniser.fingerprint == run.tokeniser.fingerprint
    assert (reverse.recipe.fit.seed, found.reverse_steps) == (language_model.recipe.fit.seed, 6)
    assert reverse._about["data_size"] == 18  # of 20 samples two are held out
    value = np.exp(sum(stepped(reverse, ids) for ids in real) / found.reverse.tokens)
    assert (found.reverse.sentences, found.reverse.tokens) == (7, sum(len(ids) + 1 for ids in real))
    assert found.reverse.value == pytest.approx(value, rel=1e-5)
    again = judge_samples(run, language_model, count=20, out=tmp_path / "reverse", progress=False)
    assert again == found
    with pytest.raises(BadInput, match="data have changed"):
        judge_samples(run, language_model, count=20, seed=1, out=tmp_path / "reverse", progress=False)


def test_empty_sentences_alone_on_the_engines(fitted, engine):
    _, language_model = fitted(engine)
    found = perplexity_under(language_model, [[], []])
    assert found.tokens == 2
    assert found.value == pytest.approx(np.exp(stepped(language_model, [])), rel=1e-5)


def test_samples_that_lack_words_have_a_high_reverse_perplexity(fitted, capsys):
    """A run that says "a" alone: the language model of its samples has not seen the other words. Its folder does not stay."""
    run, language_model = fitted("pyro")
    word = run.tokeniser.encode("a")[0]

    class OneWord:
        def decode_start(self, state, latent, rows, steps):
            return np.zeros(rows)

        def decode_step(self, state, cache, tokens):
            return cache, np.where(
                np.arange(run.tokeniser.size) == np.where(tokens == BOS, word, EOS)[:, None], 50.0, 0
            )

        def decode_reorder(self, cache, index):
            return cache

    one = SimpleNamespace(
        folder=Path("runs/one"),
        pair=PAIRS["language_model"],
        recipe=run.recipe,
        tokeniser=run.tokeniser,
        corpus=run.corpus,
        program=OneWord(),
        state=None,
    )
    found = judge_samples(one, language_model, count=40, reverse_steps=60)
    said = capsys.readouterr().err
    assert said.endswith("all steps done\n")
    assert "→" not in said
    assert (found.reverse_steps, found.distinct, found.length) == (60, 1 / 40, 1.0)
    assert found.reverse.value > 3 * found.real.value


def test_the_ends_of_a_line_are_reconstructions(fitted, engine):
    run, _ = fitted(engine)
    texts = [run.corpus.test.text(i) for i in range(4)]
    ids = [run.corpus.test[i].tolist() for i in range(4)]
    found = between(run, ids[:2], ids[2:], np.array([0.0, 1.0]), Greedy(), 16, 0).sentences
    whole = [run.tokeniser.decode(found[place]) for place in (0, 2, 1, 3)]  # a, a, b, b
    assert whole == reconstruct(run, texts, max_words=16).reconstructions
    curve = interpolation_curve(run, pairs=5, steps=3, max_words=16)
    assert (curve.novel[0], curve.novel[-1]) == (0.0, 0.0)


def test_the_command(cli, fitted):
    run, language_model = (found.folder for found in fitted("pyro"))
    arguments = ("judge", run, "--language-model", language_model, "--count", "12", "--reverse-steps", "2")
    plain = cli(*arguments)
    assert plain.status == 0
    assert all(word in plain.out for word in ("forward perplexity", "reverse perplexity", "2 steps"))
    found = json.loads(cli(*arguments, "--pairs", "3", "--json").out)
    assert (found["forward"]["sentences"], found["reverse_steps"], found["interpolation"]["pairs"]) == (12, 2, 3)
    assert Path(found["interpolation"]["picture"]).read_bytes().startswith(b"\x89PNG")
    refused = cli("judge", run, "--language-model", run)
    assert (refused.status, refused.err.count("\n")) == (2, 1)
