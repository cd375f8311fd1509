"""The marginal likelihood from draws of the posterior, against probabilistic PCA with two latents."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.stats import multivariate_normal

from guidebook.engines import ENGINES
from guidebook.guides import PAIRS
from guidebook.inference import cli, fit
from guidebook.inference.marginal import marginal_likelihood, of_batch
from guidebook.models import BadInput

D, Z, NOISE = 4, 2, 0.6
SETTINGS = (
    f"model.prior.dim={Z}",
    "model.decoder.hidden=[]",
    'model.likelihood.kind="gaussian"',
    "guide.features=3",
    "fit.max_steps=1",
    "fit.batch_size=8",
)


@pytest.fixture(params=ENGINES)
def run(request, tmp_path):
    """A fitted pair whose weights are then replaced by known ones, that start the chains away from the posterior."""
    pytest.importorskip({"pyro": "pyro", "numpyro": "numpyro"}[request.param])
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(0).normal(size=(60, D)).astype(np.float32))
    found = fit(
        PAIRS["vae"], *SETTINGS, engine=request.param, data=tmp_path / "x.npz", out=tmp_path / "run", progress=False
    )
    rng = np.random.default_rng(1)
    found.loading, found.offset = rng.normal(size=(D, Z)), rng.normal(size=D)
    weights = found.program.weights(found.state) | {
        "decoder.weight_0": np.concatenate([found.loading, np.zeros((D, Z))]),
        "decoder.bias_0": np.concatenate([found.offset, np.full(D, 2 * np.log(NOISE))]),
    }
    found.state = found.program.load_weights(found.state, weights)
    return found


def exact(run, x):
    return multivariate_normal(run.offset, run.loading @ run.loading.T + NOISE**2 * np.eye(D)).logpdf(x)


def test_it_is_the_exact_evidence(run):
    """Within Monte Carlo error, by either density; filler rows have no part."""
    batch = run.batches("test").batch(0)
    rows = np.arange(4)
    batch = {name: array[rows] for name, array in batch.items()}
    batch["weight"] = np.array([1, 1, 1, 0], np.float32)
    for density in ("normal", "kde"):
        found, errors = of_batch(run.program, run.state, batch, 300, 150, density, seed=3)
        assert found.shape == errors.shape == (3,)
        assert (errors < 0.1).all()
        z = np.abs(found - exact(run, batch["x"][:3])) / errors
        assert z.max() < 5.0, z  # twenty stretches: Student's t with 19 degrees, six values, false alarm 5e-4


def test_a_run_and_its_command_line(run, monkeypatch, capsys):
    found = run.marginal_likelihood(rows=3, draws=150, warmup=100)
    x = run.dataset.splits["test"]["x"][:3]
    assert abs(-found.nll - exact(run, x).mean()) < 5 * found.nll_standard_error
    assert found.to_dict()["rows"] == 3
    assert "by Hamiltonian Monte Carlo" in repr(found)
    if run.recipe.engine == "numpyro":
        arguments = ["evaluate", str(run.folder), "--particles", "5", "--hmc", "2", "--json"]
        monkeypatch.setattr("sys.argv", ["guidebook", *arguments])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        assert exit_.value.code == 0
        assert json.loads(capsys.readouterr().out)["marginal_likelihood"]["rows"] == 2


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (("model.prior.dim=6",), "have 6 dimensions"),
        (('model.prior.kind="uniform_box"', 'guide.posterior.kind="uniform_box"'), "moves in R"),
    ],
)
@pytest.mark.parametrize("engine", ENGINES)
def test_what_a_chain_cannot_do_is_refused(engine, settings, sentence, tmp_path):
    pytest.importorskip(engine)
    np.savez(tmp_path / "x.npz", x=np.zeros((60, D), np.float32))
    run = fit(
        PAIRS["vae"], *SETTINGS, *settings, engine=engine, data=tmp_path / "x.npz", out=tmp_path / "run", progress=False
    )
    with pytest.raises(BadInput, match=sentence):
        marginal_likelihood(run, rows=2, draws=10, warmup=5)
