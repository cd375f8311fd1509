from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import xarray as xr

from guidebook.data import ArrayBatches, Batches, Data, Sentences, WordTokeniser
from guidebook.guides import PAIRS, Pair
from guidebook.inference import figures
from guidebook.inference.diagnose import diagnose

PNG = b"\x89PNG\r\n"


@dataclass
class ToyRun:
    """What `diagnose` reads of a run."""

    folder: Path
    pair: Pair
    program: Any
    data: Any
    tokeniser: Any = None
    state: Any = None

    @property
    def recipe(self):
        judged = SimpleNamespace(charge="kl")
        return SimpleNamespace(
            engine="toy", model=None, judged=judged, data=Data(), to_toml=lambda: 'pair = "toy & <toy>"\n'
        )

    @property
    def corpus(self):
        return SimpleNamespace(test=self.data, valid=self.data, train=self.data)

    def batches(self, split):
        if self.pair.text:
            return Batches(self.data, batch_size=8, shuffle=False)
        return ArrayBatches(self.data, batch_size=8, shuffle=False)

    def history(self, kind="train"):
        return history(30 if kind == "train" else 3)


def history(rows):
    steps = np.arange(1, rows + 1) * (300 // rows)
    curve = 50.0 + 30.0 / steps
    columns = {"objective": curve - 2, "elbo": -curve, "reconstruction": curve - 5, "kl": curve - 45}
    return pd.DataFrame({**columns, "weight": np.linspace(0, 1, rows)}, index=pd.Index(steps, name="step"))


def text_run(folder, toy, pair):
    tokeniser = WordTokeniser(["the", "file", "closed"])
    rng = np.random.default_rng(0)
    sentences = [rng.integers(4, 7, rng.integers(1, 5)).tolist() for _ in range(30)]
    return ToyRun(folder, pair, toy, Sentences.of(sentences, tokeniser), tokeniser)


@pytest.fixture
def sentence_run(toys, tmp_path):
    return text_run(tmp_path / "a run", toys.BigramToy(), PAIRS["sentence_vae"])


@pytest.fixture(autouse=True)
def _folder(tmp_path):
    (tmp_path / "a run").mkdir()


def test_writes_what_it_says(sentence_run):
    found = diagnose(sentence_run, draws=12, particles=5, max_sentences=20)
    names = {"posterior", "training", "kl_per_dimension", "latent", "report"}
    assert set(found.files) == names
    for name in names - {"posterior", "report"}:
        assert found.files[name].read_bytes().startswith(PNG)
    assert found.evaluation.sentences == 20
    assert found.verdict in repr(found)
    json.dumps(found.to_dict(), allow_nan=False)
    left = {path.name for path in sentence_run.folder.iterdir()}
    assert left == {"posterior.nc", "figures", "report.html"}


def test_log_likelihood_in_the_file_is_direct_evaluation(sentence_run):
    found = diagnose(sentence_run, draws=12, particles=5, max_sentences=20)
    with xr.open_datatree(found.files["posterior"], engine="h5netcdf") as tree:
        assert tree["posterior"]["z"].dims == ("sample", "sentences", "z_dim")
        z, stored = (tree[group].dataset[site].values for group, site in (("posterior", "z"), ("log_likelihood", "x")))
    sentences = sentence_run.data
    for n in range(20):
        batch = next(
            b
            for step in range(sentence_run.batches("test").steps_per_epoch)
            if n in (b := sentence_run.batches("test").batch(step))["index"]
        )
        row = {name: array[list(batch["index"]).index(n)][None] for name, array in batch.items()}
        assert row["lengths"][0] == len(sentences[n]) + 1
        direct = sentence_run.program.likelihood(z[:, n : n + 1], row)[:, 0]
        np.testing.assert_allclose(stored[:, n], direct, rtol=1e-12)


def test_the_report_needs_no_other_file(sentence_run):
    found = diagnose(sentence_run, draws=4, particles=3)
    page = found.files["report"].read_text(encoding="utf-8")
    assert not re.search(r"(src|href)='(?!data:)", page)
    assert page.count("data:image/png;base64,") == 3
    assert "toy &amp; &lt;toy&gt;" in page
    assert found.verdict.replace("‖", "‖") in page
    for heading in ("Reconstructions", "Interpolation", "Samples", "Recipe", "KL of z: analytic"):
        assert heading in page


def test_a_language_model(toys, tmp_path):
    run = text_run(tmp_path / "a run", toys.BigramToy(latent=False), PAIRS["language_model"])
    found = diagnose(run, draws=4, particles=3)
    assert set(found.files) == {"posterior", "training", "report"}
    page = found.files["report"].read_text(encoding="utf-8")
    assert "Samples" in page
    assert "Interpolation" not in page


def test_arrays(toys, tmp_path):
    toy = toys.LinearGaussian()
    pair = Pair(print, print, name="linear", engine="pyro", plate="rows", sites={"z": ("factor",)})
    found = diagnose(ToyRun(tmp_path / "a run", pair, toy, {"x": toy.data(20)}), draws=4, particles=3)
    assert found.posterior["posterior"]["z"].dims == ("sample", "rows", "factor")
    assert "perplexity" not in found.files["report"].read_text(encoding="utf-8")


def test_no_curve_is_cut_off_from_below():
    train = history(40)
    train["objective"] = train["objective"].to_numpy() + np.where(np.arange(40) == 1, -30.0, 0.0)
    whole = figures.training(train, history(3)).axes[0]
    assert whole.get_ylim()[0] < train["objective"].to_numpy().min()


def test_pictures_leave_matplotlib_as_it_was():
    before = dict(mpl.rcParams)
    rng = np.random.default_rng(0)
    loc, scale = rng.normal(size=(50, 3)), np.full((50, 3), 0.5)
    for figure in (
        figures.training(history(40), history(2)),
        figures.training(history(2), pd.DataFrame()),
        figures.kl_bars([0.5, 0.01, 1.0], [True, False, True]),
        figures.kl_bars(rng.random(200).tolist(), [True] * 200),
        figures.latent(loc, loc, scale, [0.1, 0.3, 0.2]),
        figures.latent(loc[:, :1], loc[:, :1], scale[:, :1], [0.1]),
    ):
        assert figures.png(figure).startswith(PNG)
    assert dict(mpl.rcParams) == before
