"""Consistency regularisation from a recipe: t(x), the loop, and what is refused."""

from __future__ import annotations

import signal

import numpy as np
import pytest

from guidebook.data import ArrayBatches
from guidebook.inference import fit
from guidebook.inference import progress as display
from guidebook.inference.consistency import Consistency, Views, is_binary
from guidebook.inference.datasets import ArrayData, Arrays
from guidebook.inference.files import read_arrays
from guidebook.inference.recipe import parse, read
from guidebook.inference.resolve import resolve
from guidebook.inference.run import dataset_of
from guidebook.models.errors import BadInput, Interrupted

SENTENCES = "fit.consistency={weight=0.5, word_dropout=0.4}"


def test_words_the_encoder_reads_are_hidden_and_nothing_else(tiny):
    recipe, pair, _ = resolve(tiny)
    batches = dataset_of(recipe, pair).batches("train", batch_size=8, shuffle=True)
    views = Views(Consistency(word_dropout=0.4), batches, 0, False)
    hidden = words = 0
    for step in range(60):
        plain, batch = batches.batch(step), views.batch(step)
        assert all((batch[name] == plain[name]).all() for name in plain)
        tokens, view = batch["tokens"], batch["augmented/tokens"]
        assert (view[tokens <= 2] == tokens[tokens <= 2]).all()
        changed = view != tokens
        assert (view[changed] == 3).all()
        hidden, words = hidden + changed.sum(), words + (tokens > 3).sum()
    assert abs(hidden - 0.4 * words) < 4.5 * (words * 0.24) ** 0.5
    streamed = [batch["augmented/tokens"] for batch in views.stream(3, 5)]
    assert all((one == views.batch(step)["augmented/tokens"]).all() for step, one in zip((3, 4), streamed, strict=True))
    assert (Views(views.spec, batches, 1, False).batch(3)["augmented/tokens"] != streamed[0]).any()


@pytest.mark.parametrize("binary", [True, False])
def test_vectors_are_flipped_or_get_gaussian_noise(binary):
    x = np.random.default_rng(0).integers(0, 2, (400, 50)).astype(np.float32) * (1.0 if binary else 0.7)
    data = ArrayData(Arrays(valid=0.0, test=0.0), {"x": x.astype(np.float32)})
    assert is_binary(data, None) == binary
    batches = ArrayBatches(data.splits["train"], batch_size=400, shuffle=False)
    batch = Views(Consistency(noise=0.2), batches, 0, binary).batch(0)
    moved = batch["augmented/x"] - batch["x"]
    assert batch["augmented/x"].dtype == batch["x"].dtype
    if binary:
        assert set(np.unique(batch["augmented/x"])) == {0, 1}
        assert abs((moved != 0).mean() - 0.2) < 4.5 * (0.16 / moved.size) ** 0.5
    else:
        assert abs(moved.std() - 0.2) < 4.5 * 0.2 / (2 * moved.size) ** 0.5
        assert abs(moved.mean()) < 4.5 * 0.2 / moved.size**0.5


@pytest.mark.parametrize("more", [[], ["fit.aggressive={inner_steps=4, check_every=2}"]], ids=["alone", "aggressive"])
def test_a_resumed_run_is_as_never_interrupted(tiny, tmp_path, engine, more):
    settings = [SENTENCES, *more, "fit.epochs=3", "data.buckets=1"]
    run = fit(tiny, *settings, engine=engine, out=tmp_path / "whole", progress=False)
    train = run.history("train")
    assert train["objective"].iloc[-1] < train["objective"].iloc[0] - 0.3
    assert np.all(train["objective"] > 1.8 * train["reconstruction"])

    def stop(self, number):
        if number == 7:
            signal.raise_signal(signal.SIGINT)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(display.Display, "step", stop)
        with pytest.raises(Interrupted):
            fit(tiny, *settings, engine=engine, out=tmp_path / "run", progress=False)
    fit(tiny, *settings, engine=engine, out=tmp_path / "run", resume=True, progress=False)
    one, other = (read_arrays(tmp_path / name / "state.safetensors")[0] for name in ("whole", "run"))
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def test_a_vae_of_vectors_takes_it(tmp_path):
    x = np.random.default_rng(0).integers(0, 2, (60, 6)).astype(np.float32)
    settings = ["fit.consistency={noise=0.1}", "fit.max_steps=2", "model={prior={dim=2}, decoder={hidden=[4]}}"]
    run = fit(parse({"pair": "vae"}), *settings, data={"x": x}, out=tmp_path / "run", progress=False)
    assert np.isfinite(run.losses).all()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["fit.consistency={noise=0.1}"], "augments sentences by its word_dropout, and by nothing else"),
        (["fit.consistency={}"], "augments sentences by its word_dropout"),
        ([SENTENCES, "fit.refine={}"], r"fit\.refine and fit\.consistency each say what a step minimises"),
        ([SENTENCES, "guide.posterior={kind='point_mass'}"], "infinite for the posterior 'point_mass'"),
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused(tiny, tmp_path, settings, said):
    with pytest.raises(BadInput, match=said):
        fit(tiny, *settings, out=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_pairs_and_data_it_does_not_suit_are_refused(tiny, tmp_path):
    recipe = parse({"pair": "language_model", "data": read(tiny)[0]["data"]})
    with pytest.raises(BadInput, match="compares posteriors, and the pair 'language_model' has no latent"):
        fit(recipe, SENTENCES, out=tmp_path / "run", progress=False)
    grey = {"x": np.random.default_rng(0).random((60, 6), np.float32)}
    for settings, said in (
        (["fit.consistency={word_dropout=0.1}"], "augments arrays by its noise"),
        (["fit.consistency={noise=0.1}"], "flips zeros and ones under a bernoulli likelihood"),
        (["fit.consistency={noise=1.5}", "data.binarise=true"], "noise = 1.5 is the probability of a flip here"),
    ):
        with pytest.raises(BadInput, match=said):
            fit(parse({"pair": "vae"}), *settings, data=grey, out=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()
