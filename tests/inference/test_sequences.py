"""Generating, forecasting, imputing and smoothing, held to the Kalman filter and the smoother of Rauch et al. (1965)."""

from __future__ import annotations

import json

import numpy as np
import pytest

from guidebook.engines.filtering import Filtering
from guidebook.guides import PAIRS
from guidebook.inference import evaluate, fit, forecast, generate, impute, smooth
from guidebook.inference.figures import png
from guidebook.inference.particles import descent, in_parts, refuse_too_many
from guidebook.models import BadInput

A, Q, R = 0.9, 0.5, 0.4
STEPS, GIVEN = 12, 8
OBSERVED = ~np.isin(np.arange(STEPS), (4, 5, 6))
PARTICLES = 2000
WHOLE = {"smoothing": Filtering("none"), "filtering": None}
"""Along whole paths every weight of the smoothing guide is p(x), if not before the last step."""


def simulated(rows, seed=0):
    rng = np.random.default_rng(seed)
    z, found = np.zeros(rows), []
    for _ in range(STEPS):
        z = A * z + np.sqrt(Q) * rng.normal(size=rows)
        found.append(z + np.sqrt(R) * rng.normal(size=rows))
    return np.array(found).T


def kalman(x, observed):
    """log p of the observed x (T,), and mean and variance of each z_t given all of them."""
    evidence, m, v, filtered, predicted = 0.0, 0.0, 0.0, [], []
    for step, (value, seen) in enumerate(zip(x, observed, strict=True)):
        m, v = A * m, (A**2 * v if step else 0.0) + Q
        predicted.append((m, v))
        if seen:
            s = v + R
            evidence += -0.5 * (np.log(2 * np.pi * s) + (value - m) ** 2 / s)
            m, v = m + v / s * (value - m), v * R / s
        filtered.append((m, v))
    smoothed = [filtered[-1]]
    for (m, v), (pm, pv) in zip(filtered[-2::-1], predicted[:0:-1], strict=True):
        gain, (sm, sv) = v * A / pv, smoothed[-1]
        smoothed.append((m + gain * (sm - pm), v + gain**2 * (sv - pv)))
    mean, variance = np.array(smoothed[::-1]).T
    return evidence, mean, variance


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """Proposal → a run of the linear-Gaussian pair with known parameters, in float64."""
    pytest.importorskip("torch")
    x = simulated(20)
    data = {"x": x.reshape(-1, 1), "x_lengths": np.full(len(x), STEPS)}
    return {
        proposal: fit(
            PAIRS["linear_gaussian"],
            f"model.dynamics={{decay = {A}, state_variance = {Q}, noise_variance = {R}}}",
            f"guide.proposal={proposal}",
            "fit={max_steps = 1, batch_size = 4, precision = 'float64', optimiser = {learning_rate = 1e-300}}",
            engine="pyro",
            data=data,
            out=tmp_path_factory.mktemp("gaussian") / proposal,
            progress=False,
        )
        for proposal in ("smoothing", "filtering")
    }


@pytest.fixture(scope="module", params=["pyro", "numpyro"])
def gaussian(request, fitted):
    if request.param == "pyro":
        yield fitted
        return
    with pytest.importorskip("jax").enable_x64(True):
        yield {proposal: run.on("numpyro") for proposal, run in fitted.items()}


@pytest.mark.parametrize("proposal", ["filtering", "smoothing"])
def test_the_smoother_is_the_exact_one(gaussian, proposal):
    run = gaussian[proposal]
    x = run.dataset.splits["test"][0]
    found = smooth(run, 0, particles=PARTICLES, repeats=8, filtering=WHOLE[proposal])
    evidence, mean, variance = kalman(x[:, 0].astype(float), np.ones(STEPS, bool))
    if proposal == "smoothing":
        assert found.log_evidence == pytest.approx(evidence, abs=1e-9)
        assert found.distinct[0] == 8 * PARTICLES
    else:
        error = found.log_evidence_standard_error
        assert 0 < error < 0.1
        assert abs(found.log_evidence - evidence) < 4 * error
    assert found.mean_standard_error is not None
    z_scores = (found.mean[:, 0] - mean) / found.mean_standard_error[:, 0]
    assert np.sqrt((z_scores**2).mean()) < 1.8
    independent = np.minimum(found.distinct, 8 * PARTICLES)
    assert (np.abs(found.sd[:, 0] / np.sqrt(variance) - 1) < 5 / np.sqrt(2 * independent)).all()
    assert found.warning is None
    json.dumps(found.to_dict(), allow_nan=False)


@pytest.mark.parametrize("proposal", ["filtering", "smoothing"])
def test_a_forecast_is_the_exact_predictive(gaussian, proposal):
    run = gaussian[proposal]
    x = run.dataset.splits["test"][1].astype(float)
    found = forecast(run, x, given=GIVEN, steps=10, particles=PARTICLES, filtering=WHOLE[proposal])
    evidence, mean, variance = kalman(np.append(x[:GIVEN, 0], np.zeros(10)), np.arange(GIVEN + 10) < GIVEN)
    sd = np.sqrt(variance + R)[GIVEN:]
    if proposal == "smoothing":  # which has not read what it may not know
        assert found.log_evidence == pytest.approx(evidence, abs=1e-9)
        assert found.effective == pytest.approx(PARTICLES)
    assert abs(found.log_evidence - evidence) < 0.1
    error = sd / np.sqrt(found.effective)
    assert (np.abs(found.mean[GIVEN:, 0] - mean[GIVEN:]) < 4 * error).all()
    for share, normal in ((0.05, -1.6449), (0.5, 0.0), (0.95, 1.6449)):
        density = np.exp(-0.5 * normal**2) / np.sqrt(2 * np.pi)
        # the error of a quantile is √(p(1 − p)) / density
        off = found.quantile(share)[GIVEN:, 0] - (mean[GIVEN:] + normal * sd)
        assert (np.abs(off) < 4 * error * np.sqrt(share * (1 - share)) / density).all()
    np.testing.assert_array_equal(found.x[:, :GIVEN], np.broadcast_to(x[:GIVEN], found.x[:, :GIVEN].shape))
    np.testing.assert_array_equal(found.truth[GIVEN:STEPS], x[GIVEN:])
    assert np.isnan(found.truth[STEPS:]).all()


@pytest.mark.parametrize("proposal", ["filtering", "smoothing"])
def test_what_is_imputed_is_exact(gaussian, proposal):
    run = gaussian[proposal]
    x = run.dataset.splits["test"][0].astype(float)
    hidden = np.where(OBSERVED[:, None], x, np.nan)
    found = [impute(run, hidden, OBSERVED, particles=PARTICLES, seed=seed) for seed in range(8)]
    evidence, mean, variance = kalman(x[:, 0], OBSERVED)
    sd = np.sqrt(variance + R)[~OBSERVED]
    logs = np.array([one.log_evidence for one in found])
    assert abs(logs.mean() - evidence) < 4 * logs.std(ddof=1) / np.sqrt(8)
    means = np.array([one.mean[~OBSERVED, 0] for one in found])
    assert (np.abs(means.mean(0) - mean[~OBSERVED]) < 4 * means.std(0, ddof=1) / np.sqrt(8)).all()
    assert np.abs(means - mean[~OBSERVED]).max() < 0.3 * sd.min()
    highs = np.array([one.quantile(0.95)[~OBSERVED, 0] for one in found])
    wanted = mean[~OBSERVED] + 1.6449 * sd
    assert (np.abs(highs.mean(0) - wanted) < 5 * highs.std(0, ddof=1) / np.sqrt(8)).all()


def test_what_is_generated_has_the_moments_of_the_model(gaussian):
    drawn = np.array(generate(gaussian["filtering"], 4000, 5, seed=1))[..., 0]
    assert drawn.shape == (4000, 5)
    variance = Q * np.cumsum(A ** (2 * np.arange(5))) + R
    assert (np.abs(drawn.mean(0)) < 4 * np.sqrt(variance / 4000)).all()
    assert (np.abs(drawn.var(0) / variance - 1) < 4 * np.sqrt(2 / 4000)).all()
    covariance = A * variance[3] - A * R  # of x_4 and x_5
    assert np.cov(drawn[:, 3], drawn[:, 4])[0, 1] == pytest.approx(covariance, abs=4 * 2 * variance[4] / np.sqrt(4000))


def test_results_are_reproducible_readable_and_pictured(gaussian):
    run = gaussian["filtering"]
    one, two = (forecast(run, 0, given=3, particles=10, seed=4) for _ in range(2))
    np.testing.assert_array_equal(one.x, two.x)
    assert "9 steps after 3 that were observed, 10 particles" in repr(one)
    assert len(repr(one).splitlines()) == 11
    json.dumps(one.to_dict(), allow_nan=False)
    assert png(one.picture("a title")).startswith(b"\x89PNG")
    assert one.draws(4).shape == (4, STEPS, 1)
    assert "log-evidence" in repr(smooth(run, 0, particles=10, repeats=1))
    np.testing.assert_array_equal(generate(run, 2, 3, seed=1), generate(run, 2, 3, seed=1))


def test_few_ancestors_are_said(gaussian):
    found = smooth(gaussian["filtering"], 0, particles=10, repeats=2)
    assert found.distinct[0] <= 20
    assert "share" in found.warning
    assert found.warning in repr(found)


def test_descent_follows_the_ancestors():
    ancestors = np.array([[[1], [1], [2]], [[0], [2], [2]], [[0], [1], [2]]])
    assert descent(ancestors)[..., 0].tolist() == [[1, 2, 2], [0, 2, 2], [0, 1, 2]]


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda run: forecast(run, 0, given=13), "has 12 steps and 13 were to be given: 1 to 12 would be right"),
        (lambda run: forecast(run, 0, given=0), "1 to 12 would be right"),
        (lambda run: forecast(run, 0, given=12), "0 steps to forecast after step 12"),
        (lambda run: forecast(run, 9), "the test split has 2 sequences and no row 9: 0 to 1"),
        (lambda run: forecast(run, 0, split="dev"), "no split 'dev'"),
        (lambda run: forecast(run, np.ones((5, 2))), r"shape \(5, 2\): numbers, \(steps, 1\)"),
        (lambda run: forecast(run, np.full((5, 1), np.nan)), "not finite"),
        (lambda run: impute(run, 0, np.ones(12, bool)), "12 of 12 steps .* hide a step"),
        (lambda run: impute(run, 0, np.zeros(12, bool)), "0 of 12 steps .* generate"),
        (lambda run: impute(run, 0, np.ones(11, bool)), r"bool, \(12,\)"),
        (lambda run: impute(run, 0, np.ones(12)), "observed is float64"),
        (lambda run: generate(run, 0), "0 sequences"),
        (lambda run: generate(run, 1, 0), "of 0 steps"),
        (lambda run: smooth(run, 0, repeats=0), "0 filters"),
        (lambda run: smooth(run, 0, particles=0), "0 particles"),
        (
            lambda run: smooth(run, 0, particles=10**12),
            r"take about .* GB, and .* GB are free: at most [\d,]+ particles would",
        ),
    ],
)
def test_bad_input(gaussian, call, says):
    with pytest.raises(BadInput, match=says):
        call(gaussian["filtering"])


def test_the_bound_on_particles_is_one_that_is_accepted(gaussian, monkeypatch):
    run = gaussian["filtering"]
    monkeypatch.setattr("guidebook.inference.particles.available", lambda: 10**6)
    with pytest.raises(BadInput, match="at most") as refused:
        refuse_too_many(run, steps=STEPS, particles=10**5, rows=1)
    most = int(str(refused.value).split("at most ")[1].split()[0].replace(",", ""))
    refuse_too_many(run, steps=STEPS, particles=most, rows=1)
    with pytest.raises(BadInput):
        refuse_too_many(run, steps=STEPS, particles=most + 1, rows=1)


def test_a_fit_says_what_memory_holds_before_it_starts(tmp_path, monkeypatch):
    monkeypatch.setattr("guidebook.inference.particles.available", lambda: 10**6)
    data = {"x": np.ones((60, 3), np.float32), "x_lengths": np.array([7, 3] * 6)}
    with pytest.raises(BadInput, match=r"at most .* particles would be right"):
        fit(PAIRS["vrnn"], "divergence.kind=fivo", "divergence.particles=10000", data=data, engine="pyro", out=tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_batch_is_judged_in_parts_that_memory_holds(gaussian, monkeypatch):
    run = gaussian["filtering"]
    whole = evaluate(run, split="train", particles=4, repeats=1)
    monkeypatch.setattr("guidebook.inference.particles.PART", 4 * 16 * STEPS * 3 * 2)
    batch = run.batches("train").batch(0)
    parts = list(in_parts(run, batch, 4))
    assert [len(part["weight"]) for part in parts][:-1] == [2] * (len(parts) - 1)
    assert len(parts) == -(-len(batch["weight"]) // 2)
    np.testing.assert_array_equal(np.concatenate([part["x"] for part in parts]), batch["x"])
    cut = evaluate(run, split="train", particles=4, repeats=1)
    assert (cut.steps, cut.sequences) == (whole.steps, whole.sequences)
    assert cut.filtered.total_step == pytest.approx(whole.filtered.total_step, abs=0.1)
