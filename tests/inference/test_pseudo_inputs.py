"""Runs whose VampPrior has rows of the training data for pseudo-inputs: which rows, and that the run alone keeps them."""

from __future__ import annotations

import tomllib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from guidebook.guides import PAIRS, Pair
from guidebook.guides.posteriors import DiagonalNormal
from guidebook.inference import evaluate, fit, load, sample
from guidebook.inference.files import read_arrays
from guidebook.models import MLP, Network, VampPrior
from guidebook.models.errors import BadInput


def prior(components, **more):
    settings = "".join(f", {name}={value}" for name, value in more.items())
    return f"model.prior={{kind='vamp', inputs='data', dim=3, components={components}{settings}}}"


def short_sentences(tiny):
    """The training sentences of two words, as text: the others have six."""
    lines = Path(tomllib.loads(tiny.read_text())["data"]["corpus"]).read_text(encoding="utf-8").splitlines()
    return [line for line in lines if len(line.split()) == 2]


def chosen(run):
    """The pseudo-inputs as text, checked to be [bos, words, eos, pad …]."""
    found = []
    for row in run.weights["prior.inputs"].astype(int).tolist():
        words = row[1 : row.index(2)]
        assert row == [1, *words, 2, *[0] * (len(row) - len(words) - 2)]
        found.append(run.tokeniser.decode(words))
    return found


def test_short_sentences_are_drawn_without_replacement(tiny, tmp_path):
    """All of them, where K is their number: many occur more than once."""
    every = short_sentences(tiny)
    settings = prior(len(every), length=3), "fit.max_steps=2"
    run = fit(tiny, *settings, engine="pyro", out=tmp_path / "all", progress=False)
    assert run.weights["prior.inputs"].shape == (len(every), 5)
    assert Counter(chosen(run)) == Counter(every)


def test_a_run_keeps_its_rows_on_either_engine(tiny, tmp_path, engine, monkeypatch):
    """Both engines draw the same, a seed others; a sample asks for no data, and figures agree across engines."""
    other = "numpyro" if engine == "pyro" else "pyro"
    settings = prior(5, length=3), "fit.max_steps=4"
    run = fit(tiny, *settings, engine=engine, out=tmp_path / "run", progress=False)
    there = fit(tiny, *settings, engine=other, out=tmp_path / "other", progress=False)
    seeded = fit(tiny, *settings, engine="pyro", seed=1, out=tmp_path / "seed", progress=False)
    np.testing.assert_array_equal(run.weights["prior.inputs"], there.weights["prior.inputs"])
    assert chosen(seeded) != chosen(run)
    one, two = evaluate(load(run.folder), particles=2), evaluate(load(run.folder).on(other), particles=2)
    for figure in ("elbo", "kl", "iw_nll"):
        assert getattr(one, figure) == pytest.approx(getattr(two, figure), rel=1e-4, abs=1e-5), figure
    converted = load(run.folder).convert(other, tmp_path / "converted")
    monkeypatch.delattr("guidebook.inference.run.dataset_of")
    assert len(sample(converted, 3).sentences) == 3


def test_a_resumed_run_is_as_one_never_stopped(tiny, tmp_path, engine):
    settings = prior(5, length=3), "fit.optimiser.weight_decay=0.1"
    fit(tiny, *settings, "fit.epochs=2", engine=engine, out=tmp_path / "whole", progress=False)
    fit(tiny, *settings, "fit.epochs=1", engine=engine, out=tmp_path / "run", progress=False)
    fit(tiny, *settings, "fit.epochs=2", engine=engine, out=tmp_path / "run", resume=True, progress=False)
    for name in ("weights.safetensors", "state.safetensors"):
        whole, run = (read_arrays(tmp_path / folder / name)[0] for folder in ("whole", "run"))
        assert whole.keys() == run.keys()
        for key in whole:
            np.testing.assert_array_equal(run[key], whole[key], err_msg=key)


VAE = ("model.decoder.hidden=[3]", "guide.encoder.hidden=[]", "guide.features=3", "fit.batch_size=8", "fit.max_steps=3")


@pytest.mark.parametrize("binarise", [False, True])
def test_vectors_are_rows_as_batches_have_them(tmp_path, engine, binarise):
    """Every training row, where K is their number; draws from them, where batches hold draws."""
    x = np.random.default_rng(0).random((30, 4)).astype(np.float32)
    settings = *VAE, prior(24), "model.likelihood.kind='gaussian'", f"data.binarise={str(binarise).lower()}"
    run = fit(PAIRS["vae"], *settings, engine=engine, data={"x": x}, out=tmp_path / "run", progress=False)
    found, rows = run.weights["prior.inputs"], run.dataset.splits["train"]["x"]
    if binarise:
        assert set(np.unique(found)) == {0.0, 1.0}
        error = np.sqrt((rows * (1 - rows)).sum())
        assert abs(found.sum() - rows.sum()) < 4 * error
    else:
        np.testing.assert_array_equal(found, rows)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (prior(41, length=6), "41 different rows, and the training data have 40 sentences of at most length = 6 words"),
        (prior(5, length=1), "the training data have 0 sentences of at most length = 1 words"),
        (prior(5).replace("data", "dta"), "learned"),
    ],
)
def test_what_the_sentences_cannot_give_is_refused(tiny, tmp_path, settings, said):
    with pytest.raises(BadInput, match=said):
        fit(tiny, settings, out=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_more_rows_than_vectors_are_refused(tmp_path):
    with pytest.raises(BadInput, match="25 different rows, and the training data have 24 rows: no more components"):
        fit(PAIRS["vae"], *VAE, prior(25), data={"x": np.eye(30, 4)}, out=tmp_path / "run", progress=False)


def test_a_story_of_other_arrays_is_refused(tmp_path, engine):
    def model(ppl, batch, nets):
        prior = ppl.module("prior", nets["prior"])
        with ppl.plate("data", batch.data_size, subsample=batch.index), ppl.mask(batch.real):
            z = ppl.sample("z", prior())
            ppl.sample("y", ppl.dist.Normal(z, 1.0).to_event(1), obs=batch.y)

    def guide(ppl, batch, nets):
        encoder, posterior = (ppl.module(name, nets[name]) for name in ("encoder", "posterior"))
        with ppl.plate("data", batch.data_size, subsample=batch.index), ppl.mask(batch.real):
            ppl.sample("z", posterior(encoder(batch.y)))

    networks = {
        "prior": Network(VampPrior(inputs="data", dim=2, components=3), {"width": 2}),
        "encoder": MLP(inputs=2, outputs=2, hidden=()),
        "posterior": Network(DiagonalNormal(), {"features": 2, "latent": 2}),
    }
    pair = Pair(model=model, guide=guide, networks=networks, data={"y": np.zeros((20, 2), np.float32)})
    with pytest.raises(BadInput, match=r"draws sentences, or rows of an array x: the data have none$"):
        fit(pair, "fit.batch_size=4", engine=engine, out=tmp_path / "run", progress=False)
