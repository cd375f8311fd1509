"""The NVAE and its relatives through fit, files and the command line."""

from __future__ import annotations

import sys
from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest

from guidebook.inference import (
    bottleneck,
    diagnose,
    evaluate,
    figures,
    fit,
    load,
    reconstruct,
    sample,
    to_arviz,
)
from guidebook.inference.decoding import Decoded
from guidebook.inference.measures import retained
from guidebook.models.errors import BadInput
from guidebook.models.measures import NEVER, DirichletProcessPrior

RECIPE = """
pair = "nvae"
[model]
longest = 8
prior = {dim = 4, pseudo_count = 0.7, increment = 0.3}
decoder = {hidden = 4, layers = 1, heads = 2}
[guide]
posterior = {objective = "mixture"}
encoder = {hidden = 4, layers = 1, heads = 2}
[divergence]
weight = 0.5
[data]
corpus = "FOLDER/train.txt"
valid = "FOLDER/valid.txt"
test = "FOLDER/test.txt"
buckets = 1
[fit]
epochs = 2
max_steps = 4
batch_size = 16
optimiser = {learning_rate = 0.01}
"""
RELATIVES = {
    "nvae": (),
    "VTS": ("model.prior={kind='normal_vectors', dim=4, share=0.5}", "guide.posterior={kind='normal_vectors'}"),
    "VTP": ("model.prior={kind='pooled_normal', dim=4}", "guide.posterior={kind='pooled_normal'}"),
    "T": (
        "model.prior={kind='normal_vectors', dim=4}",
        "guide.posterior={kind='point_vectors'}",
        "divergence.weight.value=0",
    ),
}


@pytest.fixture
def recipe(tiny, tmp_path):
    path = tmp_path / "nvae.toml"
    text = RECIPE.replace("FOLDER", tiny.parent.as_posix()).replace("weight = 0.5", 'weight = {kind = "constant"}')
    path.write_text(text, encoding="utf-8")
    return path


def bounds(run, **settings):
    return evaluate(run, particles=4, repeats=1, **settings)


@pytest.mark.parametrize(
    ("relative", "engine", "other"),
    [*((relative, "pyro", "numpyro") for relative in RELATIVES), ("VTS", "numpyro", "pyro")],
)
def test_fitted_resumed_loaded_and_converted_alike(recipe, relative, engine, other, tmp_path):
    """Files keep the prior and p(n); the other engine judges the same, F drawn by a generator of its own."""
    fitted = {"engine": engine, "progress": False}
    whole = fit(recipe, *RELATIVES[relative], out=tmp_path / "whole", **fitted)
    half = (*RELATIVES[relative], "fit.max_steps=2")
    fit(recipe, *half, out=tmp_path / "halves", **fitted)
    halves = fit(recipe, *RELATIVES[relative], out=tmp_path / "halves", resume=True, **fitted)
    for name, weight in whole.weights.items():
        np.testing.assert_array_equal(weight, halves.weights[name], err_msg=name)

    again, converted = load(tmp_path / "whole"), whole.convert(other, tmp_path / "converted")
    one, same, elsewhere = (bounds(run) for run in (whole, again, converted))
    assert same.elbo == one.elbo
    batch = whole.batches("test").batch(0)
    measures = [run.program.mean_measures(run.state, batch)["F"] for run in (whole, converted)]
    np.testing.assert_allclose(*measures, rtol=1e-4, atol=1e-5)
    kls = [run.program.terms(run.state, batch, seed=0).kl["F"] for run in (whole, converted)]
    np.testing.assert_allclose(*kls, rtol=1e-4)
    assert elsewhere.kl == pytest.approx(one.kl, rel=1e-4)
    if relative == "VTP":
        assert "length.log_shares" not in whole.weights
        return
    counts = np.bincount(whole.corpus.train.lengths, minlength=9)[1:] + 1.0
    for run in (again, converted):
        shares = run.weights["length.log_shares"]
        assert shares[0] == np.float32(NEVER)
        np.testing.assert_allclose(np.exp(shares[1:]), counts / counts.sum(), rtol=1e-5)
    real = batch["weight"] > 0
    likelihood = whole.program.terms(whole.state, batch, seed=0).log_likelihood["n"][0]
    np.testing.assert_allclose(likelihood[real], np.log(counts / counts.sum())[batch["lengths"] - 1][real], rtol=1e-5)


def test_the_prior_of_a_file_is_that_of_the_recipe(recipe, engine, tmp_path):
    run = load(fit(recipe, out=tmp_path / "run", engine=engine, progress=False).folder)
    draws = run.program.prior_draws(run.state, seed=0, rows=4000, lengths=np.full(4000, 3))
    assert draws.shape == (4000, 4, 5)
    weights = np.exp(draws[..., 0])
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-5)
    # Var π_k of Dir(B / K₀, …) is (1 / K₀) (1 − 1 / K₀) / (B + 1), B = 0.7 + 0.3 · 3, K₀ = 4.
    spread, wanted = weights.var(0), 0.25 * 0.75 / (0.7 + 0.3 * 3 + 1)
    error = np.sqrt(((weights - weights.mean(0)) ** 2).var(0) / 4000)
    assert (np.abs(spread - wanted) < 5 * error).all()


def test_retained_vectors_by_hand(recipe, tmp_path):
    run = fit(recipe, out=tmp_path / "run", engine="pyro", progress=False)
    log_alpha = np.log(np.array([[0.7, 0.05, 0.2, 3.0], [0.7, 0.05, 0.09, 1.0]]))
    measures = np.concatenate((log_alpha[..., None], np.ones((2, 4, 8))), -1)
    measures[1, 3, 0] = NEVER  # a sentence of two words
    lower = measures.copy()
    lower[:, :, 0] = np.log(0.05)  # the prior component counts as kept whatever its pseudo-count
    passes = []
    run.program.mean_measures = lambda state, batch: passes.append(1) or {"F": measures, "F_1": lower}
    batches = [{"weight": np.ones(2, np.float32), "index": np.arange(2)}]
    found = retained(run, batches=batches)
    assert len(passes) == 1
    assert found.vectors == pytest.approx((2 / 3 + 0 / 2) / 2)
    assert found.with_prior == pytest.approx((3 / 4 + 1 / 3) / 2)
    assert found.pseudo_count == pytest.approx((3.95 + 0.84) / 2)
    assert found.prior_share == pytest.approx((0.7 / 3.95 + 0.7 / 0.84) / 2)
    assert (found.below[0].vectors, found.below[0].with_prior) == (0.0, 0.25)

    table = repr(replace(bounds(load(run.folder), max_sentences=2), retained=found))
    assert "share of the words'; 0.542 with the prior component" in table
    assert "vectors retained of F_1" in table
    assert "−E log p(n, x | z)" in table
    assert "(F bound)" in table

    run.recipe = run.recipe.model_copy(
        update={"model": run.recipe.model.model_copy(update={"prior": DirichletProcessPrior(empirical=True)})}
    )
    found = retained(run, batches=batches)
    assert found.vectors is found.with_prior is None
    assert found.prior_share == pytest.approx((0.7 / 3.95 + 0.7 / 0.84) / 2)


def test_what_is_validated_is_what_is_trained_and_what_is_judged_is_a_mixture(recipe, tmp_path):
    paper = "guide.posterior={objective='paper', lambda_weights=0, lambda_locations=0}"
    run = fit(recipe, paper, "fit.max_steps=2", out=tmp_path / "run", engine="pyro", progress=False)
    for line in run.lines:
        assert line["elbo"] is None, line
        assert line["kl"] == 0, line
        assert line["objective"] == pytest.approx(line["reconstruction"]), line
    assert "valid ELBO –" in repr(run)
    found = bounds(run)
    assert found.kl > 0
    assert found.elbo == pytest.approx(-found.reconstruction - found.kl)
    assert found.sites["F"].kl_from == "bound"
    assert load(run.folder).recipe.guide.posterior.objective == "paper"
    picture = figures.training(run.history("train"), run.history("valid"))
    said = [line.get_label() for axes in picture.axes for line in axes.lines]
    assert not any("ELBO" in label or "KL, " in label for label in said), said
    assert "objective at its final weight, validation" in said


@pytest.mark.parametrize("relative", ["T", "point_mass"])
def test_points_are_judged_without_a_bound(recipe, tiny, relative, tmp_path):
    """And what a bottleneck keeps stands in the report."""
    chosen = {
        "T": (recipe, *RELATIVES["T"]),
        "point_mass": (tiny, "pair=sentence_vae", "guide.posterior={kind='point_mass'}"),
    }[relative]
    run = fit(*chosen, "fit.max_steps=1", out=tmp_path / "run", engine="pyro", progress=False)
    found = bounds(run, max_sentences=4)
    assert found.elbo is found.iw_nll is found.perplexity is None
    assert found.notes["elbo"] == "q is points: no bound"
    assert np.isfinite(found.reconstruction)


def test_what_a_bottleneck_keeps_of_a_sentence(recipe, tmp_path):
    run = fit(recipe, "fit.max_steps=1", out=tmp_path / "run", engine="pyro", progress=False)
    passes, means = [], run.program.mean_measures
    run.program.mean_measures = lambda *arguments: passes.append(1) or means(*arguments)
    found = bottleneck(run, "a b")
    assert len(passes) == 1
    assert found.tokens[-1] == "⏎"
    assert found.prior == pytest.approx(0.7)
    assert found.attention.shape == (1, 2, 3, 4)
    np.testing.assert_allclose(found.attention.sum(-1), 1, rtol=1e-5)
    assert all(name in repr(found) for name in (*found.header, *"ab"))
    assert [axes.get_label() for axes in found.picture().axes].count("<colorbar>") == 1
    with pytest.raises(BadInput, match="a sentence has 9 words with its end mark: at most 8"):
        bottleneck(run, "a b c a b c a b")
    with pytest.raises(BadInput, match=r"sentences are strings in a list, not \[\['a'\]\]"):
        bottleneck(run, ["a"])
    with pytest.raises(BadInput, match="sentences are strings in a list, not 'a b'"):
        reconstruct(run, "a b")
    with pytest.raises(BadInput, match=r"keep = '0\.5' is the share"):
        reconstruct(run, ["a b"], keep="0.5")


def test_the_report_says_what_is_kept_and_which_latent_was_decoded(recipe, tmp_path):
    run = fit(recipe, "fit.max_steps=1", out=tmp_path / "run", engine="pyro", progress=False)
    found = diagnose(run, draws=2, particles=2, max_sentences=4)
    page = found.files["report"].read_text(encoding="utf-8")
    assert "vectors retained" in page
    assert "KL of F: an upper bound" in page
    assert "From the posterior mean, greedy" in page
    assert reconstruct(run, ["a b"], latent="either").latent == "mean"
    assert "reconstructions from a draw from the posterior" in repr(reconstruct(run, ["a b"], latent="draw"))


@pytest.mark.slow
def test_vectors_that_tell_nothing_are_dropped_as_their_price_rises(engine, tmp_path):
    """One to three names, each behind "the" and but for the first behind "and": of n words n / 3 or so are needed."""
    names = ["anna", "bert", "carl", "dora", "emil", "fred", "gina", "hugo"]
    sentences = ["the " + " and the ".join(some) + " ." for n in (1, 2, 3) for some in permutations(names, n)]
    corpus = tmp_path / "names.txt"
    corpus.write_text("\n".join(np.random.default_rng(0).permutation(sentences)) + "\n", encoding="utf-8")
    kept, bleu = {}, {}
    for price in (0.01, 2.0):
        run = fit(
            "ptb_nvae",
            f"data={{corpus='{corpus.as_posix()}', buckets=1}}",
            "model.prior.dim=32",
            "model.decoder={hidden=32, layers=1, heads=2, dropout=0}",
            "guide.encoder={hidden=32, layers=1, heads=2, dropout=0}",
            "guide.posterior.lambda_locations=0.1",
            f"divergence.weight={{kind='linear', start=0, stop={price}, wait=150, steps=200}}",
            "fit.max_steps=600",
            "fit.word_dropout=0.5",
            "fit.optimiser={kind='adam', learning_rate=5e-3, clip=1.0, "
            "schedule={kind='linear', start=1.0, stop=0.05, steps=600}}",
            engine=engine,
            seed=1,
            out=tmp_path / str(price),
            progress=False,
        )
        kept[price], bleu[price] = retained(run).vectors, reconstruct(run, count=30).bleu
    assert kept[0.01] > kept[2.0] + 0.2
    assert bleu[0.01] > 97
    assert bleu[2.0] > 85


@pytest.mark.parametrize("relative", ["nvae", "stacked", "VTS", "T"])
def test_exported_measures_have_no_place_that_is_no_atom(recipe, relative, tmp_path):
    settings = RELATIVES.get(relative, ("guide.stacked=1",))
    run = fit(recipe, *settings, "data.buckets=2", out=tmp_path / "run", engine="pyro", progress=False)
    tree = to_arviz(run, draws=3)
    posterior, words = tree["posterior"].dataset, tree["constant_data"].dataset["length"].values
    weighted = relative not in ("VTS", "T")
    location = posterior["F_location" if weighted else "F"]
    assert location.dims == ("sample", "sentences", "atom", "coordinate")
    assert location.sizes["coordinate"] == 4
    there = np.isfinite(location.values)
    expected = words + 1 if weighted else words if relative == "T" else np.ceil(words / 2)
    assert (there.sum(2) == expected[:, None]).all()
    assert np.abs(location.values[there]).max() < 100
    if weighted:
        log_weight = posterior["F_log_weight"]
        assert log_weight.dims == ("sample", "sentences", "atom")
        np.testing.assert_array_equal(np.isfinite(log_weight), there[..., 0])
        np.testing.assert_allclose(np.nansum(np.exp(log_weight), -1), 1, rtol=1e-5)
    sites = {"F_1", "F"} if relative == "stacked" else {"F"}
    parts = ("_log_weight", "_location") if weighted else ("",)
    assert set(posterior.data_vars) == {site + part for site in sites for part in parts}
    stats = {"lp"} if relative == "T" else {"lp", "log_q", "log_weight"}  # a point has no density
    assert set(tree["sample_stats"].dataset.data_vars) == stats
    with pytest.raises(BadInput, match="0 draws asked for: at least 1"):
        to_arviz(run, draws=0)


def test_large_measures_are_exported_with_fewer_draws(recipe, monkeypatch, tmp_path):
    run = fit(recipe, out=tmp_path / "run", engine="pyro", progress=False)
    each = (max(run.corpus.test.lengths) + 1) * (4 + 1)
    module = sys.modules[diagnose.__module__]
    for most, sizes in ((20 * len(run.corpus.test) * each, (20, len(run.corpus.test))), (10 * 3 * each, (10, 3))):
        monkeypatch.setattr(module, "MOST_NUMBERS", most)
        found = diagnose(run).posterior["posterior"].sizes
        assert (found["sample"], found["sentences"]) == sizes


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (("model.prior={kind='normal_vectors', share=0}", "guide.posterior.kind=normal_vectors"), "model.prior.share"),
        (("model.prior.scale=0",), "model.prior.scale = 0 is wrong: input should be greater than 0"),
        (("model.prior.scale=inf",), "model.prior.scale = inf is wrong: input should be a finite number"),
        (("model.prior.loc=nan",), "model.prior.loc = nan is wrong: input should be a finite number"),
        (("guide.posterior.initial_log_alpha=nan",), "guide.posterior.initial_log_alpha = nan is wrong"),
        (("guide.posterior.initial_log_alpha=40.0",), "input should be less than or equal to 30"),
        (("model.prior.places=0",), "model.prior.places = 0 is wrong: input should be greater than 0"),
        (("model.longest=5",), "one of 7: model.longest=7 would be right"),
        (("model.prior={kind='normal_vectors'}",), "use the prior dirichlet_process"),
        (("guide.posterior={kind='pooled_normal'}",), "use the prior pooled_normal"),
        (("divergence.free_bits={nats=2}",), 'per = "sentence" or "batch" would be right'),
        (("divergence={kind='info_vae'}",), "compares vectors of one size"),
        (("divergence={kind='stein'}",), "compares vectors of one size"),
        (("divergence.kind=fivo",), "fivo filters the steps of a sequence, and the pair 'nvae' has none"),
        (("divergence={kind='svgd'}",), "compares vectors of one size"),
        (("divergence={kind='iwae'}", "guide.posterior={objective='paper'}"), 'use objective = "mixture"'),
        (("fit.refine={}",), "fit.refine is for one latent vector a datum"),
        (("fit.consistency={}",), "fit.consistency is for one latent vector a datum"),
        (("fit.aggressive={}",), "fit.aggressive is for one latent vector a datum"),
        (("guide.posterior={objective='paper', gradient='score'}",), "gradient = 'score' says nothing with objective"),
        (("guide.posterior.lambda_locations=0.5",), "1.0, or objective = 'paper', would be right"),
        (("model.decoder.kind=lstm",), "model.decoder.kind = 'lstm' is unknown; known: transformer"),
        (("model.prior.kind=standard_normal",), "model.prior.kind = 'standard_normal' is unknown"),
    ],
)
def test_what_does_not_fit_is_one_sentence(cli, recipe, settings, said, tmp_path):
    found = cli("fit", recipe, *settings, "--out", tmp_path / "run", "--engine", "pyro")
    assert found.status == 2, found.err
    assert said in found.err
    assert found.err.count("\n") == 1


def test_samples_of_a_given_length_have_room_for_it(recipe, monkeypatch, tmp_path):
    run, most = fit(recipe, "model.longest=80", out=tmp_path / "run", engine="pyro", progress=False), []

    def decoded(*_, max_words, **__):
        most.append(max_words)
        return Decoded([], np.zeros(0))

    monkeypatch.setattr("guidebook.inference.text.decode_scored", decoded)
    for settings in ({}, {"words": 70}, {"words": 3}, {"words": 70, "max_words": 5}, {"words": np.int64(70)}):
        sample(run, 1, **settings)
    assert most == [60, 70, 60, 5, 70]
    for words in (2.5, "5", [3], True):
        with pytest.raises(BadInput, match=r"a sentence of .* words: a whole number from 1 to 80"):
            sample(run, 1, words=words)


def test_the_command_line(cli, recipe, tiny, tmp_path):
    fit(recipe, out=tmp_path / "run", engine="pyro", progress=False)
    vae = ("pair=sentence_vae", "fit.max_steps=1")
    fit(tiny, *vae, out=tmp_path / "vae", engine="pyro", progress=False)
    fit(recipe, *RELATIVES["VTP"], out=tmp_path / "pooled", engine="pyro", progress=False)
    for arguments in (
        ("sample", tmp_path / "run", "--words", 3, "-n", 2),
        ("sample", tmp_path / "run", "--words", 8, "-n", 2),
        ("sample", tmp_path / "pooled", "-n", 2),
        ("reconstruct", tmp_path / "run", "--keep", 0.5, "-n", 2),
        ("reconstruct", tmp_path / "run", "a", "a b c"),
        ("interpolate", tmp_path / "run", "a", "a b c", "--steps", 3),
        ("evaluate", tmp_path / "run", "--particles", 2),
    ):
        found = cli(*arguments)
        assert found.status == 0, found.err
    for arguments, said in (
        (
            ("sample", tmp_path / "run", "--words", 9),
            "a sentence of 9 words: a whole number from 1 to 8 (model.longest) would be right",
        ),
        (
            ("reconstruct", tmp_path / "run", "a b c a b c a b"),
            "a sentence has 9 words with its end mark: at most 8 (model",
        ),
        (("interpolate", tmp_path / "pooled", "a", "a b c a b c a b"), "at most 8 (model.longest) would be right"),
        (("sample", tmp_path / "pooled", "--words", 3), "does not hang on the number of words"),
        (("sample", tmp_path / "vae", "--words", 3), "does not hang on the number of words: leave words out"),
        (("reconstruct", tmp_path / "run", "--keep", 0), "above 0 and up to 1 would be right"),
        (("reconstruct", tmp_path / "pooled", "--keep", 0.5), "have no weights: leave keep out"),
        (("reconstruct", tmp_path / "vae", "--keep", 0.5), "have no weights: leave keep out"),
    ):
        found = cli(*arguments)
        assert found.status == 2, found.err
        assert said in found.err
        assert found.err.count("\n") == 1
