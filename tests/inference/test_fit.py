"""The one loop on both engines: what falls, what is written down, what stops it, what a setting does."""

from __future__ import annotations

import json
import math
import sys

import numpy as np
import pandas as pd
import pytest

from guidebook.engines.protocol import Control
from guidebook.guides import PAIRS, Pair
from guidebook.inference import Run, evaluate, fit, load
from guidebook.inference.files import read_arrays
from guidebook.inference.recipe import parse, read
from guidebook.inference.resolve import resolve
from guidebook.inference.run import dataset_of, program_of
from guidebook.models import MLP
from guidebook.models.errors import BadInput, FailedRun


@pytest.fixture(scope="module")
def fitted(tiny, tmp_path_factory):
    """One run per engine, fitted when it is first asked for."""
    runs: dict[str, Run] = {}

    def run(engine):
        if engine not in runs:
            out = tmp_path_factory.mktemp("runs") / engine
            runs[engine] = fit(tiny, "fit.epochs=8", engine=engine, out=out, progress=False)
        return runs[engine]

    return run


def test_the_loss_falls(fitted, engine):
    run = fitted(engine)
    valid = run.history("valid")
    assert valid["objective"].min() < valid["objective"].iloc[0] - 0.3
    assert valid["elbo"].max() > valid["elbo"].iloc[0]
    assert len(run.losses) == 8


def test_the_history_is_two_tables_by_step(fitted, engine):
    train, valid = (fitted(engine).history(kind) for kind in ("train", "valid"))
    assert isinstance(train, pd.DataFrame)
    per_epoch = train.index[0]
    assert list(train.index) == list(valid.index) == [per_epoch * epoch for epoch in range(1, 9)]
    assert {"objective", "elbo", "reconstruction", "kl", "kl/z", "log_likelihood/x", "gradient_norm", "weight",
            "learning_rate", "tokens", "seconds", "epoch"} <= set(train)  # fmt: skip
    assert {"objective", "elbo", "kl", "kl_per_dimension", "active_units", "best", "compilations", "epoch"} <= set(
        valid
    )
    np.testing.assert_allclose(train["elbo"], -(train["reconstruction"] + train["kl"]))
    np.testing.assert_allclose(train["kl"], train["kl/z"])
    np.testing.assert_allclose(train["weight"], np.minimum((train.index - 1) / 12, 1.0))
    assert fitted(engine).history("other").empty


def test_metrics_are_one_json_object_a_line(fitted, engine):
    run = fitted(engine)
    content = (run.folder / "metrics.jsonl").read_text(encoding="utf-8")
    assert [json.loads(line) for line in content.splitlines()] == run.lines
    assert {line["kind"] for line in run.lines} == {"train", "valid"}


def test_tokens_are_counted_with_end_marks_and_without_filler_rows(fitted, engine):
    run = fitted(engine)
    expected = run.corpus.train.tokens
    assert (run.history("train")["tokens"] == expected).all()


def test_a_run_is_a_folder_without_pickle(fitted, engine):
    run = fitted(engine)
    names = {path.name for path in run.folder.iterdir()}
    assert names == {"recipe.toml", "tokeniser.json", "weights.safetensors", "state.safetensors", "metrics.jsonl"}
    assert parse(read(run.folder / "recipe.toml")[0]) == run.recipe
    assert repr(run).startswith(f"Run('{run.folder}', sentence_vae on {engine}; epoch 8: valid ELBO ")


def test_the_best_weights_are_kept(fitted, engine):
    run = fitted(engine)
    valid = run.history("valid")
    best = valid[valid["best"]].index[-1]
    assert valid["objective"].idxmin() == best
    assert load(run.folder)._about["step"] == best


def test_jax_compiles_once_a_shape(fitted):
    """Two buckets: two compilations, however many epochs."""
    pytest.importorskip("jax")
    run = fitted("numpyro")
    shapes = run.dataset.batches("train", batch_size=8, shuffle=True).shapes
    assert len(shapes) == 2
    assert list(run.history("valid")["compilations"]) == [2] * 8


def test_select_last_keeps_the_last(tiny, tmp_path, engine):
    run = fit(tiny, "fit.select=last", "fit.epochs=3", engine=engine, out=tmp_path / "run", progress=False)
    valid = run.history("valid")
    assert run._about["step"] == valid.index[-1]


def test_max_steps_stops_before_the_epochs_do(tiny, tmp_path, engine):
    run = fit(tiny, "fit.max_steps=8", engine=engine, out=tmp_path / "run", progress=False)
    assert run.history("valid").index[-1] == run.history("train").index[-1] == 8
    assert len(run.history("valid")) == 2


def test_early_stopping_counts_epochs_without_a_better_one(tiny, tmp_path, engine, monkeypatch):
    worse_every_epoch(monkeypatch)
    run = fit(tiny, "fit.early_stopping=3", "fit.epochs=30", engine=engine, out=tmp_path / "run", progress=False)
    assert list(run.history("valid")["best"]) == [True, False, False, False]
    finished = read_arrays(run.folder / "state.safetensors")[1]["finished"]
    assert finished == "no better validation objective for 3 epochs"


def worse_every_epoch(patch):
    """Validation whose objective is the number of the epoch."""
    module, epochs = sys.modules["guidebook.inference.fit"], []
    validate = module.validate_program

    def scripted(*arguments):
        epochs.append(1)
        return validate(*arguments) | {"objective": float(len(epochs))}

    patch.setattr(module, "validate_program", scripted)


def test_a_plateau_lowers_the_rate_and_goes_back_to_the_best_weights(tiny, tmp_path, engine, monkeypatch):
    worse_every_epoch(monkeypatch)
    plateau = "fit.plateau={patience=2, first_epoch=4, decays=2, factor=0.25}"
    run = fit(tiny, plateau, "fit.epochs=20", engine=engine, out=tmp_path / "run", progress=False)
    assert list(run.history("valid")["best"]) == [True] + [False] * 5
    assert list(run.history("train")["learning_rate"]) == [0.05] * 4 + [0.0125] * 2
    state, about = read_arrays(run.folder / "state.safetensors")
    assert (about["decays"], about["finished"]) == (2, "the learning rate was lowered 2 times")
    for name, weight in run.weights.items():
        np.testing.assert_array_equal(state[f"weight/{name}"], weight)


def test_separate_optimisers_for_the_two_sides(tiny, tmp_path, engine):
    frozen = "fit.guide_optimiser={kind='sgd', learning_rate=1e-30}"
    settings = [frozen, "fit.select=last", "data.buckets=1", "fit.max_steps=3"]
    run = fit(tiny, *settings, engine=engine, out=tmp_path / "run", progress=False)
    recipe, pair, _ = resolve(tiny, settings, engine=engine)
    program = program_of(recipe, pair, run.tokeniser.size, 40)
    state = program.init(run.dataset.batches("train", batch_size=8).batch(0))
    start, sides = program.weights(state), program.sides(state)
    moved = {name: np.abs(run.weights[name] - start[name]).max() for name in start}
    assert {name.partition(".")[0] for name, side in sides.items() if side == "guide"} == {"encoder", "posterior"}
    for name, side in sides.items():
        assert moved[name] < 1e-9 if side == "guide" else moved[name] > 1e-3, name


def language_model(tiny, engine, *settings):
    table = "model={decoder={kind='lstm', embedding=6, hidden=8, dropout=0.0}}"
    raw = read(tiny)[0]
    recipe = parse({"pair": "language_model", "data": raw["data"] | {"buckets": 1}, "engine": engine})
    return resolve(recipe, [table, *settings])


def test_accumulated_gradients_are_those_of_the_large_batch(tiny, engine):
    recipe, pair, _ = language_model(tiny, engine, "fit.optimiser={kind='sgd', clip=inf}")
    data = dataset_of(recipe, pair)
    whole = data.batches("train", batch_size=16).batch(0)
    halves = [{name: array[rows] for name, array in whole.items()} for rows in (slice(0, 8), slice(8, 16))]
    after = []
    for batches in ([whole], halves):
        program = program_of(recipe, pair, data.width, 40)
        state, info = program.step(program.init(whole), batches, Control(0, 1.0, {"model": 1.0, "guide": 1.0}))
        after.append((program.weights(state), {key: float(value) for key, value in info.items()}))
    (large, one), (summed, two) = after
    assert one == pytest.approx(two, rel=1e-5)
    for name in large:
        np.testing.assert_allclose(large[name], summed[name], rtol=1e-5, atol=1e-6)


def test_accumulation_takes_fewer_steps_over_the_same_sentences(tiny, tmp_path, engine):
    run = fit(
        tiny, "fit.accumulate=2", "fit.epochs=2", "data.buckets=1", engine=engine, out=tmp_path / "run", progress=False
    )
    steps = run.dataset.batches("train", batch_size=8, shuffle=True).steps_per_epoch
    assert list(run.history("valid").index) == [math.ceil(steps / 2), 2 * math.ceil(steps / 2)]


def test_the_learning_rate_schedule_reaches_the_optimiser(tiny, tmp_path, engine):
    """A schedule that ends at zero: from there on the weights stand still."""
    schedule = "fit.optimiser={kind='sgd', learning_rate=0.5, schedule={kind='linear', start=1.0, stop=0.0, steps=6}}"
    settings = [schedule, "fit.select=last", "data.buckets=1"]
    runs = [
        fit(tiny, *settings, f"fit.max_steps={steps}", engine=engine, out=tmp_path / str(steps), progress=False)
        for steps in (6, 8)
    ]
    rates = runs[1].history("train")["learning_rate"]
    assert rates.iloc[-1] == 0.0
    for name, weight in runs[0].weights.items():
        np.testing.assert_array_equal(weight, runs[1].weights[name])


@pytest.mark.parametrize("kind", ["adam", "adamw", "sgd"])
def test_the_engines_take_the_same_steps(tiny, kind):
    """Five updates of a language model from the same start: the optimisers are the same ones."""
    pytest.importorskip("torch")
    pytest.importorskip("jax")
    found = []
    for engine in ("pyro", "numpyro"):
        table = f"fit.optimiser={{kind='{kind}', learning_rate=0.01, weight_decay=0.1, momentum=0.5, clip=0.5}}"
        recipe, pair, _ = language_model(tiny, engine, table)
        data = dataset_of(recipe, pair)
        program = program_of(recipe, pair, data.width, 40)
        batch = data.batches("train", batch_size=16).batch(0)
        state = program.init(batch)
        for step in range(5):
            state, _ = program.step(state, [batch], Control(step, 1.0, {"model": 0.01, "guide": 0.01}))
        found.append(program.weights(state))
    for name in found[0]:
        np.testing.assert_allclose(found[0][name], found[1][name], rtol=2e-4, atol=2e-6)


def test_bfloat16_is_a_way_to_train(tiny, tmp_path, engine):
    run = fit(tiny, "fit.precision=bfloat16", "data.buckets=1", engine=engine, out=tmp_path / "run", progress=False)
    assert np.isfinite(run.losses).all()
    assert {array.dtype for array in run.weights.values()} == {np.dtype(np.float32)}


def test_float64_is_float64_throughout(tiny, tmp_path, engine):
    settings = (tiny, "fit.precision=float64", "fit.max_steps=2", "data.buckets=1")
    if engine == "numpyro":
        import jax

        with pytest.raises(BadInput, match="set JAX_ENABLE_X64=1"):
            fit(*settings, engine=engine, out=tmp_path / "none", progress=False)
        assert not (tmp_path / "none").exists()
        jax.config.update("jax_enable_x64", True)
    try:
        run = fit(*settings, engine=engine, out=tmp_path / "run", progress=False)
    finally:
        if engine == "numpyro":
            jax.config.update("jax_enable_x64", False)
    assert {array.dtype for array in run.weights.values()} == {np.dtype(np.float64)}


def test_word_dropout_hides_the_decoders_words_in_training_only(tiny):
    recipe, pair, _ = resolve(tiny, ["fit.word_dropout=1.0"])
    data = dataset_of(recipe, pair)
    training = data.batches("train", batch_size=8, shuffle=True, word_keep=0.0).batch(0)
    assert set(np.unique(training["inputs"][:, 1:])) <= {0, 2, 3}
    assert (training["tokens"][:, :-1] == data.batches("train", batch_size=8, shuffle=True).batch(0)["inputs"]).all()


@pytest.mark.parametrize(
    "settings",
    [
        ["model.decoder.kind=gru", "guide.encoder.kind=gru"],
        ["model.decoder.tie_embeddings=true", "model.decoder.embedding=8"],
        ["divergence.free_bits={nats=2.0}", "divergence.particles=2"],
    ],
    ids=["gru", "tied", "free bits"],
)
def test_other_stories_go_through_the_same_loop(tiny, tmp_path, engine, settings):
    settings = [*settings, "divergence.weight=1.0", "data.buckets=1", "fit.epochs=4"]
    run = fit(tiny, *settings, engine=engine, out=tmp_path / "run", progress=False)
    assert np.isfinite(run.losses).all()
    assert run.losses[-1] < run.losses[0]


def test_a_language_model_has_no_kl(tiny, tmp_path, engine):
    recipe, _, _ = language_model(tiny, engine, "fit.epochs=3", "fit.optimiser.learning_rate=0.05", "fit.batch_size=8")
    run = fit(recipe, out=tmp_path / "run", progress=False)
    train = run.history("train")
    assert not train["kl"].to_numpy().any()
    assert train["objective"].iloc[-1] < train["objective"].iloc[0]
    np.testing.assert_allclose(train["objective"], train["reconstruction"])


def test_the_same_seed_gives_the_same_run_and_another_seed_another(tiny, tmp_path, engine):
    settings = ["fit.max_steps=3", "fit.select=last", "data.buckets=1"]
    same, again, other = (
        fit(tiny, *settings, engine=engine, seed=seed, out=tmp_path / f"{i}", progress=False).weights
        for i, seed in enumerate((0, 0, 2))
    )
    assert all((same[name] == again[name]).all() for name in same)
    assert any((same[name] != other[name]).any() for name in same)


def test_the_default_folder_says_recipe_engine_and_seed(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = fit(tiny, "fit.max_steps=1", seed=4, progress=False)
    assert str(run.folder) == "runs/tiny-pyro-4"


def test_without_a_terminal_there_is_one_line_an_epoch(tiny, tmp_path, capsys):
    fit(tiny, out=tmp_path / "run")
    out, err = capsys.readouterr()
    head, warning, *epochs, tail = err.splitlines()
    assert out == ""
    assert head.startswith("sentence_vae on pyro: 40 ")
    assert warning.startswith("warning: training ends with divergence.weight at ")
    assert [line.split()[:2] for line in epochs] == [["epoch", "1"], ["epoch", "2"]]
    assert all("objective" in line and "ELBO" in line and "KL" in line for line in epochs)
    assert tail == f"all steps done; the run is in {tmp_path / 'run'}"


def test_the_live_display_draws_a_table_of_epochs(tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "140")
    fit(tiny, out=tmp_path / "run", progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    for word in ("validation, nats per sentence", "active units", "all steps done"):
        assert word in err


def test_native_pairs_go_through_the_same_loop(tmp_path, engine):
    """z ~ N(0, 1), x ~ N(z, 1): the best guide is N(x / 2, 1/2), and the evidence is known."""
    rng = np.random.default_rng(0)
    data = {"x": rng.normal(scale=math.sqrt(2), size=200).astype(np.float32)}
    pair = native(engine, data)
    settings = ["fit.epochs=40", "fit.batch_size=32", "fit.optimiser.learning_rate=0.05", "data={valid=0.0, test=0.0}"]
    run = fit(pair, *settings, out=tmp_path / "run", progress=False)
    evidence = -0.5 * np.mean(data["x"] ** 2) / 2 - 0.5 * math.log(2 * math.pi * 2)
    assert run.history("valid")["elbo"].iloc[-1] == pytest.approx(evidence, abs=0.06)
    assert run.weights["slope"] == pytest.approx(0.5, abs=0.1)
    again = load(run.folder, pair=pair)
    assert again.weights["slope"] == run.weights["slope"]
    with pytest.raises(BadInput, match=r"add --pair FILE\.py:NAME"):
        load(run.folder)
    with pytest.raises(BadInput, match="it does not run on"):
        again.on("numpyro" if engine == "pyro" else "pyro")
    with pytest.raises(BadInput, match=r"fit\.word_dropout"):
        fit(pair, "fit.word_dropout=0.5", out=tmp_path / "other", progress=False)


def native(engine, data):
    if engine == "pyro":
        import pyro as ppl
        import torch as array
        from pyro.distributions import Normal, constraints
    else:
        import jax.numpy as array
        import numpyro as ppl
        from numpyro.distributions import Normal, constraints

    def model(batch, data_size):
        with ppl.plate("data", data_size, subsample_size=len(batch["x"])):
            z = ppl.sample("z", Normal(0.0 * batch["x"], 1.0))
            ppl.sample("x", Normal(z, 1.0), obs=batch["x"])

    def guide(batch, data_size):
        slope = ppl.param("slope", array.zeros(()))
        scale = ppl.param("scale", array.ones(()), constraint=constraints.positive)
        with ppl.plate("data", data_size, subsample_size=len(batch["x"])):
            ppl.sample("z", Normal(slope * batch["x"], scale))

    return Pair(model=model, guide=guide, name="native", engine=engine, data=data)


def test_a_gradient_that_is_not_finite_names_its_parameters(tmp_path, engine):
    """√u at u = 0 is finite, its derivative is not."""

    def model(ppl, batch, nets):
        noise = ppl.module("noise", nets["noise"])
        with ppl.plate("data", batch.data_size, subsample=batch.index), ppl.mask(batch.real):
            z = ppl.sample("z", ppl.dist.Normal(ppl.zeros((1,)), 1.0).to_event(1))
            scale = 1.0 + (0.0 * noise(ppl.zeros((1,)))) ** 0.5
            ppl.sample("x", ppl.dist.Normal(z, scale).to_event(1), obs=batch.x)

    def guide(ppl, batch, nets):
        encoder = ppl.module("encoder", nets["encoder"])
        with ppl.plate("data", batch.data_size, subsample=batch.index), ppl.mask(batch.real):
            ppl.sample("z", ppl.dist.Normal(encoder(batch.x), 1.0).to_event(1))

    networks = {name: MLP(inputs=1, outputs=1, hidden=()) for name in ("noise", "encoder")}
    pair = Pair(model, guide, networks=networks, data={"x": np.ones((40, 1), np.float32)})
    with pytest.raises(FailedRun, match=r"step 0: the gradient of 'noise\.\w+', 'noise\.\w+' is not finite; "):
        fit(pair, engine=engine, out=tmp_path / "run", progress=False)


def test_every_pair_of_the_table_is_tried_here():
    assert set(PAIRS) == {"sentence_vae", "nvae", "language_model", "vae", *SEQUENCES}  # "nvae" in test_nvae.py


SEQUENCES = ("rnn", "vrnn", "srnn", "dmm", "linear_gaussian")


@pytest.mark.parametrize(
    ("pair", "setting"),
    [
        ("vrnn", "divergence.kind=fivo"),
        ("rnn", "model.cell={kind='gru', hidden=5}"),
        ("rnn", "fit.truncate=4"),
        ("vrnn", "fit.truncate=4"),
        ("srnn", "fit.truncate=4"),
        ("dmm", "guide.proposal=filtering"),
        ("linear_gaussian", "guide.proposal=filtering"),
    ],
)
@pytest.mark.parametrize(("engine", "other"), [("pyro", "numpyro"), ("numpyro", "pyro")])
def test_sequences_are_fitted_resumed_and_judged_alike(pair, engine, other, setting, tmp_path):
    rng = np.random.default_rng(0)
    data = {"x": (rng.random((60, 3)) < 0.3).astype(np.float32), "x_lengths": np.array([7, 3] * 6)}
    wanted = (setting, "fit.batch_size=4", "data.buckets=1", "data.valid=0", "data.test=0")
    whole, halves = (
        fit(
            PAIRS[pair],
            *wanted,
            f"fit.max_steps={steps}",
            engine=engine,
            data=data,
            out=tmp_path / name,
            progress=False,
        )
        for name, steps in (("whole", 4), ("halves", 2))
    )
    halves = fit(
        PAIRS[pair],
        *wanted,
        "fit.max_steps=4",
        engine=engine,
        data=data,
        out=tmp_path / "halves",
        resume=True,
        progress=False,
    )
    for name, weight in whole.weights.items():
        np.testing.assert_array_equal(weight, halves.weights[name], err_msg=name)
    one, two = (evaluate(run, particles=4, repeats=1) for run in (whole, whole.on(other)))
    for bound in ("elbo", "iw", "filtered"):
        assert getattr(one, bound).total_step == pytest.approx(getattr(two, bound).total_step, rel=1e-4)
