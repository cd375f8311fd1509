"""A run folder read back: whole, on either engine, or refused in one sentence."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from guidebook.inference import evaluate, fit, load
from guidebook.inference.files import read_arrays, write_arrays
from guidebook.models.errors import BadInput


@pytest.fixture(scope="module")
def original(tiny, tmp_path_factory):
    out = tmp_path_factory.mktemp("original") / "run"
    fit(tiny, "fit.epochs=6", out=out, progress=False)
    return out


@pytest.fixture
def run(original, tmp_path):
    """A copy to be damaged."""
    return shutil.copytree(original, tmp_path / "run")


def other(engine):
    return "numpyro" if engine == "pyro" else "pyro"


def log_prob_at_the_means(run):
    """(B,) log p(x | z) of test sentences at z = E q(z | x), word by word: no random number touches it."""
    batch = run.batches("test").batch(0)
    z = run.program.posterior(run.state, batch)["z"].loc
    cache, total = run.program.decode_start(run.state, z, len(z), batch["inputs"].shape[1]), np.zeros(len(z))
    for step in range(batch["inputs"].shape[1]):
        cache, logits = run.program.decode_step(run.state, cache, batch["inputs"][:, step])
        logits = logits.astype(np.float64)
        found = logits[np.arange(len(z)), batch["targets"][:, step]] - np.log(np.exp(logits).sum(-1))
        total += np.where(step < batch["lengths"], found, 0.0)
    return total


def test_a_run_gives_the_same_numbers_on_the_other_engine(tiny, tmp_path, engine):
    """All figures to 1e-4: the engines draw the same latents for the same seed."""
    pytest.importorskip("jax")
    pytest.importorskip("torch")
    run = fit(tiny, "fit.epochs=6", engine=engine, out=tmp_path / "run", progress=False)
    here = evaluate(load(run.folder), particles=2)
    there = evaluate(load(run.folder), particles=2, engine=other(engine))
    converted = load(run.folder).convert(other(engine), tmp_path / "converted")
    again = evaluate(load(converted.folder), particles=2)
    assert again.to_dict() == there.to_dict()
    for figure in ("elbo", "reconstruction", "kl", "iw_nll", "mi", "perplexity"):
        assert getattr(here, figure) == pytest.approx(getattr(there, figure), rel=1e-4, abs=1e-6), figure
    np.testing.assert_allclose(here.kl_per_dimension, there.kl_per_dimension, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(log_prob_at_the_means(load(run.folder)), log_prob_at_the_means(converted), rtol=1e-4)
    assert converted.recipe.engine == other(engine)
    for name, weight in run.weights.items():
        np.testing.assert_array_equal(weight, converted.weights[name])


def test_a_run_reads_back_as_it_was(original):
    run = load(original)
    assert run.recipe.pair == "sentence_vae"
    assert repr(run).startswith(f"Run('{original}', sentence_vae on pyro; epoch 6: valid ELBO")
    assert len(run.history("valid")) == 6
    assert len(run.losses) == len(run.history("train"))
    assert run.corpus.train.tokens == run.history("train")["tokens"].iloc[0]


def test_a_run_before_its_first_epoch_has_an_empty_history(tiny, run):
    (run / "metrics.jsonl").unlink()
    found = load(run)
    assert found.history().empty
    assert found.losses.size == 0
    assert repr(found).endswith("no epoch yet)")
    assert np.isfinite(evaluate(found, particles=2).elbo)


def test_metrics_that_a_kill_cut_short_are_read_as_far_as_they_go(run):
    path = run / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-30])
    assert len(load(run).history("valid")) == 5


@pytest.mark.parametrize("name", ["recipe.toml", "weights.safetensors", "tokeniser.json"])
def test_each_missing_file_is_named(run, name):
    (run / name).unlink()
    with pytest.raises(BadInput, match=f"{name} is missing"):
        load(run)


def test_weights_are_checked_by_name_and_shape(run):
    arrays, about = read_arrays(run / "weights.safetensors")
    for changed, said in (
        ({k: v for k, v in arrays.items() if k != "decoder.output"}, "lack 'decoder.output'"),
        (arrays | {"decoder.output": np.zeros((2, 2), np.float32)}, r"'decoder.output' has shape \(2, 2\)"),
        (arrays | {"more": np.zeros(1)}, "hold 'more'"),
    ):
        write_arrays(run / "weights.safetensors", changed, about)
        for engine in ("pyro", "numpyro"):
            with pytest.raises(BadInput, match=said):
                _ = load(run, engine=engine).state


@pytest.mark.parametrize(
    ("device", "said"),
    [
        ("gpu", "there is no device 'gpu': cpu, cuda or cuda:1"),
        ("cuda:x", "there is no device 'cuda:x'"),
        ("cuda", "finds no GPU here: use --device cpu"),
        ("cuda:1", "finds no GPU here: use --device cpu"),
    ],
)
def test_a_device_that_is_not_there(original, engine, device, said):
    if device.startswith("cuda") and _gpus(engine):
        pytest.skip("there is a GPU here")
    with pytest.raises(BadInput, match=said):
        _ = load(original, engine=engine, device=device).state


def _gpus(engine):
    if engine == "pyro":
        import torch

        return torch.cuda.is_available()
    import jax

    return jax.default_backend() == "gpu"


def test_convert_never_overwrites_and_leaves_nothing_behind_when_it_fails(original, run, tmp_path):
    pytest.importorskip("jax")
    with pytest.raises(BadInput, match="already holds a run"):
        load(original).convert("numpyro", run)
    with pytest.raises(BadInput, match="there is no engine 'jax'"):
        load(original).convert("jax", tmp_path / "new")
    write_arrays(run / "weights.safetensors", {}, read_arrays(run / "weights.safetensors")[1])
    with pytest.raises(BadInput, match="lack"):
        load(run).convert("numpyro", tmp_path / "new")
    assert not (tmp_path / "new").exists()
