"""A plain Transformer autoencoder made nonparametric: it stays what it was, and less of it is read as τ_α falls."""

from __future__ import annotations

import json

import mpmath
import numpy as np
import pytest
from scipy.special import logsumexp

from guidebook.inference import bottleneck, evaluate, fit, load, reconstruct, regularised
from guidebook.inference.files import read_arrays, write_arrays
from guidebook.models.errors import BadInput
from guidebook.models.measures import NEVER, DirichletProcessPrior
from guidebook.models.spec import Network

RECIPE = """
pair = "nvae"
[model]
prior = {kind = "normal_vectors", dim = 6}
decoder = {hidden = 8, layers = 1, heads = 2}
longest = 8
[guide]
posterior = {kind = "point_vectors"}
encoder = {hidden = 8, layers = 1, heads = 2}
[divergence]
weight = 0.0
[data]
corpus = "FOLDER/train.txt"
valid = "FOLDER/valid.txt"
test = "FOLDER/test.txt"
[fit]
epochs = 3
batch_size = 8
optimiser = {learning_rate = 0.05}
"""
ROOT = 2.0  # √(8 / 2)


@pytest.fixture(scope="module")
def plain(tiny, tmp_path_factory):
    """The folder of T, with its vectors eight times as long and what reads them as much smaller: the same function."""
    pytest.importorskip("torch")
    folder = tmp_path_factory.mktemp("plain")
    (folder / "t.toml").write_text(RECIPE.replace("FOLDER", tiny.parent.as_posix()), encoding="utf-8")
    run = fit(folder / "t.toml", engine="pyro", out=folder / "run", progress=False)
    weights, about = read_arrays(run.folder / "weights.safetensors")
    for name, factor in (
        ("posterior.loc", 8),
        ("posterior.loc_bias", 8),
        ("decoder.memory_key_0", 1 / 8),
        ("decoder.memory_value_0", 1 / 8),
    ):
        weights[name] = weights[name] * np.float32(factor)
    write_arrays(run.folder / "weights.safetensors", weights, about)
    return run.folder


def vectors(run, split="train"):
    """v (n, p) of all sentences, and which sentence each is of."""
    found = [run.program.mean_measures(run.state, batch)["F"][batch["weight"] > 0] for batch in batches(run, split)]
    return [row[row[:, 0] > NEVER, 1:].astype(np.float64) for part in found for row in part]


def batches(run, split):
    of = run.batches(split)
    return [of.batch(step) for step in range(of.steps_per_epoch)]


def logits(run, measure, words):
    """(T, N, V) of a decoder that is told the words (N, T)."""
    cache, found = run.program.decode_start(run.state, measure, len(words), words.shape[1]), []
    for column in words.T:
        cache, each = run.program.decode_step(run.state, cache, column)
        found.append(each)
    return np.stack(found)


def test_at_ten_it_is_what_it_was(plain, engine, tmp_path):
    run = load(plain, engine=engine)
    (batch,) = batches(run, "test")
    measure = run.program.mean_measures(run.state, batch)["F"]
    made = regularised(run, tmp_path / "made")
    one = made.program.mean_measures(made.state, batch)["F"]

    before, after = logits(run, measure, batch["inputs"]), logits(made, one, batch["inputs"])
    assert np.ptp(before, 1).max() > 0.1  # the sentences matter
    np.testing.assert_allclose(after, before, atol=1e-4)
    assert reconstruct(made, count=None).reconstructions == reconstruct(run, count=None).reconstructions
    judged = evaluate(made, particles=20, repeats=1)
    assert judged.iw_nll < -1.1 * judged.elbo  # draws of what is nearly points differ by hundreds of nats
    assert bottleneck(made, "a b").kept is None

    norms = np.concatenate([(v**2).sum(-1) for v in vectors(run)]) / (2 * ROOT)
    assert norms.max() + 10 * norms.std() > 40  # what log α would be
    assert logsumexp(one[batch["weight"] > 0][..., 0].astype(np.float64), -1).max() < 30.001


def test_the_measures_are_those_of_the_paper(plain, engine, tmp_path):
    run = load(plain, engine=engine)
    made = regularised(run, tmp_path / "made", tau_alpha=-1.5, tau_sigma=0.3, tau_mu=0.6)
    all_of_them = np.concatenate(vectors(run))
    norms = (all_of_them**2).sum(-1) / (2 * ROOT)
    loc, variance = all_of_them.mean(0), all_of_them.var(0, ddof=1)
    shift = norms.mean() + 1.5 * norms.std(ddof=1)

    other = load(made.folder, engine={"pyro": "numpyro", "numpyro": "pyro"}[engine])
    for judged in (made, other):
        (batch,) = batches(judged, "test")
        found = judged.program.mean_measures(judged.state, batch)["F"][batch["weight"] > 0]
        for row, v in zip(found, vectors(run, "test"), strict=True):
            log_alpha, mu, sigma2 = row[: len(v) + 1, 0], row[: len(v) + 1, 1:7], row[: len(v) + 1, 7:]
            np.testing.assert_allclose(log_alpha[1:] - log_alpha[0], (v**2).sum(-1) / (2 * ROOT) - shift, atol=1e-3)
            np.testing.assert_allclose(mu, np.vstack((loc, 0.6 * v + 0.4 * loc)), rtol=1e-4, atol=1e-4)
            np.testing.assert_allclose(sigma2[0], variance, rtol=1e-4)
            np.testing.assert_allclose(sigma2[1:], np.tile(0.09 * variance, (len(v), 1)), rtol=1e-4)


def test_less_of_it_is_read_as_tau_falls(plain, engine, tmp_path):
    run = load(plain, engine=engine)
    (batch,) = batches(run, "test")
    queries = np.random.default_rng(0).normal(size=(20, 6))
    shares, apart = [], []
    for tau in (10.0, 3.0, 0.0, -3.0, -30.0):
        made = regularised(run, tmp_path / str(tau), tau_alpha=tau)
        measure = made.program.mean_measures(made.state, batch)["F"][batch["weight"] > 0]
        shares.append(prior_share(measure.astype(np.float64), queries))
        own = measure.copy()
        own[:, 1:, 0], own[:, 1:, 1:] = NEVER, 0
        words = batch["inputs"][batch["weight"] > 0]
        apart.append(np.abs(logits(made, measure, words) - logits(made, own, words)).max())
    assert (np.diff(shares, axis=0) >= 0).all()
    assert shares[0].max() < 1e-6
    assert shares[-1].min() > 1 - 1e-6
    assert apart[0] > 0.1
    assert apart[-1] < 1e-5


def prior_share(measure, u):
    """(N, Q): the posterior probability that v + noise, v from the mixture and noise ~ N(0, r I), came from its first."""
    log_alpha, (loc, variance) = measure[..., 0], np.split(measure[..., 1:], 2, -1)
    s = ROOT + variance[:, None]
    density = -0.5 * ((u[:, None] - loc[:, None]) ** 2 / s + np.log(s)).sum(-1) + log_alpha[:, None]
    return np.exp(density - logsumexp(density, -1, keepdims=True))[..., 0]


def test_its_bound_is_the_paper_s(plain, engine, tmp_path):
    made = regularised(load(plain, engine=engine), tmp_path / "made", tau_alpha=0.0, tau_sigma=0.5)
    (batch,) = batches(made, "test")
    there = batch["weight"] > 0
    kl = np.asarray(made.program.terms(made.state, batch, seed=0).kl["F"])[there].reshape(-1)
    for row, found in zip(made.program.mean_measures(made.state, batch)["F"][there], kl, strict=True):
        row = row[row[:, 0] > NEVER].astype(np.float64)
        alpha, (mu, variance) = np.exp(row[:, 0]), np.split(row[:, 1:], 2, -1)
        prior = np.exp(made.weights["prior.log_pseudo_count"].astype(np.float64)) * len(row)  # α^p (1 + n)
        ratio = variance / variance[0]
        each = 0.5 * ((mu - mu[0]) ** 2 / variance[0] + ratio - 1 - np.log(ratio)).sum(-1)
        expected = dirichlet_kl(alpha.sum(), prior, len(row)) + len(row) * (alpha / alpha.sum()) @ each
        assert found == pytest.approx(expected, rel=1e-4)


def dirichlet_kl(a, b, atoms):
    """KL(Dir(a / atoms, …)‖Dir(b / atoms, …)) from its definition."""
    with mpmath.workdps(50):
        a, b = mpmath.mpf(a), mpmath.mpf(b)
        each = mpmath.loggamma(b / atoms) - mpmath.loggamma(a / atoms)
        moved = (a - b) * (mpmath.digamma(a / atoms) - mpmath.digamma(a))
        return float(mpmath.loggamma(a) - mpmath.loggamma(b) + atoms * each + moved)


@pytest.mark.parametrize("taus", [(10.0, 0.0), (-30.0, 0.2)])
def test_draws_and_bounds_are_finite(plain, engine, tmp_path, taus):
    made = regularised(load(plain, engine=engine), tmp_path / "made", *taus)
    (batch,) = batches(made, "test")
    terms = made.program.terms(made.state, batch, seed=0)
    assert np.isfinite(terms.kl["F"]).all()
    assert np.isfinite(terms.reconstruction()).all()
    drawn = made.program.prior_draws(made.state, seed=0, rows=3, lengths=np.array([2, 3, 8]))
    assert np.isfinite(drawn).all()
    np.testing.assert_allclose(logsumexp(drawn[..., 0], -1), 0, atol=1e-4)


def test_no_step_moves_an_empirical_prior():
    prior = DirichletProcessPrior(dim=5, empirical=True)
    assert Network(prior).untrained() == {"loc", "log_variance", "log_pseudo_count"}
    assert Network(DirichletProcessPrior(dim=5)).initial_weights("prior", 0) == {}


@pytest.mark.parametrize("scale", [{"loc": 1.0}, {"scale": 2.0}])
def test_an_empirical_prior_has_no_other_law(scale):
    with pytest.raises(ValueError, match="leave loc and scale out"):
        DirichletProcessPrior(empirical=True, **scale)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("value = 0.0", "value = 0.5"),
        ("share = 1.0", "share = 0.5"),
        ('"point_vectors"', '"normal_vectors"'),
    ],
)
def test_only_a_plain_autoencoder(plain, tmp_path, before, after):
    recipe = (plain / "recipe.toml").read_text(encoding="utf-8")
    for name in ("weights.safetensors", "tokeniser.json"):
        (tmp_path / name).write_bytes((plain / name).read_bytes())
    changed = replaced(recipe, before, after)
    (tmp_path / "recipe.toml").write_text(changed, encoding="utf-8")
    with pytest.raises(BadInput, match="no plain autoencoder"):
        regularised(load(tmp_path), tmp_path / "made")


def replaced(recipe, before, after):
    assert before in recipe, recipe
    return recipe.replace(before, after)


@pytest.mark.parametrize("taus", [{"tau_mu": 0.0}, {"tau_sigma": 1.5}, {"tau_alpha": float("nan")}])
def test_taus_out_of_range(plain, tmp_path, taus):
    with pytest.raises(BadInput, match="tau_"):
        regularised(load(plain), tmp_path / "made", **taus)
    assert not (tmp_path / "made").exists()


def test_no_fit_begins_or_resumes_one(plain, cli, tmp_path):
    regularised(load(plain), tmp_path / "made")
    for recipe in (plain / "recipe.toml", tmp_path / "made" / "recipe.toml"):
        found = cli("fit", recipe, "--out", tmp_path / "made", "--resume")
        assert (found.status, found.err.count("\n")) == (2, 1), found.err
        assert "filled by guidebook regularise" in found.err
    process = (
        "model.prior={kind = 'dirichlet_process', dim = 6, empirical = true}",
        "guide.posterior.kind=dirichlet_process",
    )
    found = cli("fit", plain / "recipe.toml", *process, "--out", tmp_path / "new")
    assert found.status == 2
    assert "filled by guidebook regularise" in found.err
    assert not (tmp_path / "new").exists()


def test_the_command(plain, cli, tmp_path):
    found = cli("regularise", plain, "--tau-alpha", "2", "--out", tmp_path / "made", "--json")
    assert found.status == 0, found.err
    assert json.loads(found.out) == {"run": str(tmp_path / "made"), "tau_alpha": 2, "tau_sigma": 0, "tau_mu": 1}
    assert load(tmp_path / "made").recipe.guide.posterior.pseudo_counts == "quadratic_in_means"
    again = cli("regularise", plain, "--out", tmp_path / "made")
    assert again.status == 2
    assert "already holds a run" in again.err
