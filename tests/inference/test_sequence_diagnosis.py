"""The export of ragged sequences against the Kalman filter, the report, and runs of sequences side by side."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import xarray as xr
from scipy.stats import multivariate_normal, norm

from guidebook.engines.filtering import Filtering
from guidebook.guides import PAIRS
from guidebook.inference import compare, diagnose, evaluate, fit, forecast, generate, smooth, to_arviz
from guidebook.models import BadInput

A, Q, R = 0.9, 0.5, 0.4
LENGTHS = [3, 5, 4, 6, 2] * 4
SETTINGS = (
    f"model.dynamics={{decay = {A}, state_variance = {Q}, noise_variance = {R}}}",
    "fit={max_steps = 2, batch_size = 4, precision = 'float64', optimiser = {learning_rate = 1e-300}}",
    "data.buckets=2",
)
DATA = {"x": np.random.default_rng(0).normal(size=(sum(LENGTHS), 1)), "x_lengths": np.array(LENGTHS)}


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    pytest.importorskip("torch")
    out = tmp_path_factory.mktemp("runs") / "run"
    return fit(PAIRS["linear_gaussian"], *SETTINGS, engine="pyro", data=DATA, out=out, progress=False)


@pytest.fixture(params=["pyro", "numpyro"])
def run(request, fitted):
    if request.param == "pyro":
        yield fitted
        return
    with pytest.importorskip("jax").enable_x64(True):
        yield fitted.on("numpyro")


def evidence(x):
    """log p(x) of the chain, by its whole covariance."""
    steps = np.arange(len(x))
    variance = Q * np.cumsum(A ** (2.0 * steps))
    early, late = np.minimum.outer(steps, steps), np.abs(np.subtract.outer(steps, steps))
    return multivariate_normal.logpdf(x, np.zeros(len(x)), A**late * variance[early] + R * np.eye(len(x)))


def test_latents_have_time_and_the_densities_are_those_at_the_draws(run):
    tree = to_arviz(run, split="train", draws=6)
    z, x = tree["posterior"]["z"], tree["observed_data"]["x"]
    assert z.dims == ("chain", "draw", "sequences", "time", "z_dim")
    assert (tree["log_likelihood"]["x"].dims, x.dims) == (
        ("chain", "draw", "sequences"),
        ("sequences", "time", "x_dim"),
    )
    lengths = np.asarray(tree["constant_data"]["length"])
    assert lengths.tolist() == run.dataset.splits["train"].lengths.tolist()
    after = np.arange(z.sizes["time"]) >= lengths[:, None]
    np.testing.assert_array_equal(np.isnan(np.asarray(z)[0, ..., 0]), np.broadcast_to(after, (6, *after.shape)))
    np.testing.assert_array_equal(np.isnan(np.asarray(x)[..., 0]), after)
    for row, length in enumerate(lengths):
        seen, path = np.asarray(x)[row, :length, 0], np.asarray(z)[0, :, row, :length, 0]
        likelihood = norm.logpdf(seen, path, np.sqrt(R)).sum(-1)
        before = np.concatenate([np.zeros((6, 1)), path[:, :-1]], 1)
        prior = norm.logpdf(path, A * before, np.sqrt(Q)).sum(-1)
        np.testing.assert_allclose(np.asarray(tree["log_likelihood"]["x"])[0, :, row], likelihood, rtol=1e-9)
        np.testing.assert_allclose(np.asarray(tree["sample_stats"]["lp"])[0, :, row], likelihood + prior, rtol=1e-9)
        # the guide is the smoother, so that each weight is p(x)
        np.testing.assert_allclose(np.asarray(tree["sample_stats"]["log_weight"])[0, :, row], evidence(seen), rtol=1e-7)


def test_the_report_of_sequences(run):
    found = diagnose(run, split="train", draws=3, particles=4)
    assert set(found.files) == {"posterior", "forecast", "report"}
    with xr.open_datatree(found.files["posterior"], engine="h5netcdf") as tree:
        assert dict(tree["posterior"].sizes) == {"chain": 1, "draw": 3, "sequences": 16, "time": 6, "z_dim": 1}
    page = found.files["report"].read_text(encoding="utf-8")
    for words in ("FIVO", "nats per step", "Forecast", "On the first 16 of the train split, 3 draws each"):
        assert words in page
    assert found.verdict in repr(found)
    json.dumps(found.to_dict(), allow_nan=False)


def test_long_sequences_are_exported_with_fewer_draws(fitted, monkeypatch):
    module = sys.modules[diagnose.__module__]
    each = int(fitted.dataset.splits["train"].lengths.max())
    assert module._room(fitted, "train", 500) == (100, 16)
    for most, room in ((16 * 50 * each, (50, 16)), (10 * 3 * each, (10, 3))):
        monkeypatch.setattr(module, "MOST_NUMBERS", most)
        assert module._room(fitted, "train", 500) == room
        draws, rows = room
        assert draws * rows * each <= most


def test_runs_of_sequences_side_by_side(tmp_path):
    pytest.importorskip("torch")
    found = compare(
        PAIRS["linear_gaussian"],
        "guide.proposal=smoothing,prior",
        *SETTINGS,
        engine="pyro",
        data=DATA,
        out=tmp_path,
        particles=8,
        progress=False,
    )
    assert all(name in repr(found) for name in ("FIVO", "IWAE", "smoothing", "prior", "nats per step", "seconds"))
    smoothing, prior = (found.to_dict()["runs"][value] for value in ("smoothing", "prior"))
    x = found.runs["prior"].dataset.splits["test"]
    exact = sum(evidence(x[i][:, 0]) for i in range(len(x))) / x.lengths.sum()
    assert smoothing["iw"]["total_step"] == pytest.approx(exact, abs=1e-6)
    assert prior["iw"]["total_step"] < exact
    assert [len(row) for row in found.rows()] == [6, 6]
    assert found.picture.is_file()


def test_without_a_latent_the_likelihood_is_exact(engine, tmp_path):
    cell = "model.cell={kind='gru', hidden=4}"
    settings = ("fit={max_steps = 1, batch_size = 4}", "data.buckets=2", "model.likelihood.kind=gaussian", cell)
    run = fit(PAIRS["rnn"], *settings, engine=engine, data=DATA, out=tmp_path / "run", progress=False)
    found = evaluate(run, split="train")
    exact = 0.0
    for x in run.dataset.splits["train"]:  # the filter's, of one row at a time, particle by particle the same
        batch = {"x": x[None], "mask": np.ones((1, len(x)), bool), "weight": np.ones(1, np.float32)}
        exact += run.program.filter(run.state, batch, seed=0, particles=3, filtering=Filtering()).log_evidence[0]
    assert found.log_evidence == pytest.approx(exact, rel=1e-5)
    assert found.elbo == found.iw == found.filtered
    assert (found.sequences, found.kl) == (16, 0.0)
    assert "the log-likelihood is exact" in repr(found)
    json.dumps(found.to_dict(), allow_nan=False)
    assert [x.shape for x in generate(run, 2, 3)] == [(3, 1)] * 2
    assert forecast(run, 0, steps=2, particles=5).effective == pytest.approx(5)
    with pytest.raises(BadInput, match="'rnn', which has no latent to smooth"):
        smooth(run, 0)
    with xr.open_datatree(diagnose(run, split="train").files["posterior"], engine="h5netcdf") as tree:
        assert "posterior" not in tree
        assert float(tree["sample_stats"]["lp"].sum()) == pytest.approx(exact, rel=1e-5)
