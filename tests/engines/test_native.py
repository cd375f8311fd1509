"""Plain Pyro and plain NumPyro programs through the whole suite: a factor model, whose evidence is exact.

z ~ N(0, 1);   x ~ N(W z, s²);   q(z | x) = N(V x, t²)
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as ndist
import pyro
import pyro.distributions as pdist
import pytest
import torch
from numpyro.contrib.module import eqx_module
from scipy.stats import multivariate_normal
from torch import nn

from guidebook.engines.protocol import OptimiserSpec
from guidebook.guides import Pair
from guidebook.inference import cli, evaluate, fit, load
from guidebook.inference.diagnose import diagnose
from guidebook.models import MLP, BadInput

D = 3
TRUE = np.array([1.5, -1.0, 0.5])
LINEAR = nn.Linear(D, 1)
AFFINE = eqx.nn.Linear(D, 1, key=jax.random.key(0))


def pyro_model(batch, data_size):
    loading = pyro.param("loading", torch.ones(D))
    noise = pyro.param("noise", torch.tensor(1.0), constraint=pdist.constraints.positive)
    with pyro.plate("data", data_size, subsample=batch["index"]):
        z = pyro.sample("z", pdist.Normal(torch.zeros(1), 1.0).to_event(1))
        pyro.sample("x", pdist.Normal(z * loading, noise).to_event(1), obs=batch["x"])


def pyro_guide(batch, data_size):
    encoder = pyro.module("encoder", LINEAR)
    spread = pyro.param("spread", torch.tensor(0.5), constraint=pdist.constraints.interval(0.01, 2.0))
    with pyro.plate("data", data_size, subsample=batch["index"]):
        pyro.sample("z", pdist.Normal(encoder(batch["x"]), spread).to_event(1))


def numpyro_model(batch, data_size):
    loading = numpyro.param("loading", jnp.ones(D))
    noise = numpyro.param("noise", 1.0, constraint=ndist.constraints.positive)
    with numpyro.plate("data", data_size, subsample_size=len(batch["x"])):
        z = numpyro.sample("z", ndist.Normal(jnp.zeros(1), 1.0).to_event(1))
        numpyro.sample("x", ndist.Normal(z * loading, noise).to_event(1), obs=batch["x"])


def numpyro_guide(batch, data_size):
    encoder = eqx_module("encoder", AFFINE)
    spread = numpyro.param("spread", 0.5, constraint=ndist.constraints.interval(0.01, 2.0))
    with numpyro.plate("data", data_size, subsample_size=len(batch["x"])):
        loc = jax.vmap(encoder)(batch["x"])
        numpyro.sample("z", ndist.Normal(loc, spread).to_event(1))


def generated(rows=300, seed=0):
    rng = np.random.default_rng(seed)
    return {"x": (rng.normal(size=(rows, 1)) * TRUE + 0.5 * rng.normal(size=(rows, D))).astype(np.float32)}


SITES = {"z": ("factor",), "x": ("feature",)}
PAIRS = {
    "pyro": Pair(pyro_model, pyro_guide, name="factors", engine="pyro", sites=SITES),
    "numpyro": Pair(numpyro_model, numpyro_guide, name="factors", engine="numpyro", sites=SITES),
}


@pytest.fixture
def pair(engine):
    return replace(PAIRS[engine], data=generated())


def evidence(weights, x):
    """Exact log p(x), averaged over rows; the noise is stored unconstrained, as its logarithm."""
    loading, noise = weights["loading"].astype(float), np.exp(float(weights["noise"]))
    covariance = np.outer(loading, loading) + noise**2 * np.eye(D)
    return multivariate_normal(np.zeros(D), covariance).logpdf(x).mean()


def settings(**changes):
    chosen = {"epochs": 40, "batch_size": 60, "optimiser.learning_rate": 0.03} | changes
    return [f"fit.{key}={value}" for key, value in chosen.items()]


def test_fit_evaluate_diagnose(pair, tmp_path):
    run = fit(pair, *settings(), out=tmp_path / "run", progress=False)
    assert sorted(run.weights) == ["encoder.bias", "encoder.weight", "loading", "noise", "spread"]
    assert run.losses[-1] < run.losses[0] - 0.5
    test = run.dataset.splits["test"]["x"]
    exact = evidence(run.weights, test)
    truth = multivariate_normal(np.zeros(D), np.outer(TRUE, TRUE) + 0.25 * np.eye(D)).logpdf(test).mean()
    assert abs(exact - truth) < 0.3  # thirty rows seen by a model fitted to 240
    found = load(tmp_path / "run", pair=pair)
    evaluation = evaluate(found, particles=200)
    assert evaluation.sentences == 30
    assert evaluation.kl > 0.5
    assert evaluation.sites["z"].kl_from == "analytic"
    # A bound within the Monte Carlo error of its reconstruction term, and nearly tight: the family holds the posterior.
    assert exact - 0.25 < evaluation.elbo < exact + 0.05
    assert -evaluation.iw_nll == pytest.approx(exact, abs=0.02)

    diagnosis = diagnose(found, draws=5, max_sentences=20, particles=5)
    assert (tmp_path / "run" / "posterior.nc").is_file()
    assert diagnosis.posterior["posterior"]["z"].dims == ("sample", "data", "factor")


def test_a_fit_leaves_the_users_world_as_it_was(pair, tmp_path):
    pyro.clear_param_store()
    mine = pyro.param("loading", torch.full((2,), 7.0))
    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002 - the user's own legacy state
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), LINEAR.weight.clone()  # noqa: NPY002
    run = fit(pair, *settings(epochs=1), out=tmp_path / "run", progress=False)
    _ = run.state
    assert dict(pyro.get_param_store().items()).keys() == {"loading"}
    assert (pyro.param("loading") == mine).all()
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()  # noqa: NPY002
    assert torch.equal(LINEAR.weight, before[2])
    assert LINEAR.weight.grad is None
    pyro.clear_param_store()


def test_programs_of_one_pair_in_one_process_are_independent(both, engine, pair):
    """One `pyro.module` of one name, one global parameter store: each program has its own weights all the same."""
    adam = {side: OptimiserSpec() for side in ("model", "guide")}
    batch = both.rows({"x": pair.data["x"][:20]})

    def begun(seed):
        program = both.program(engine, pair, data_size=20, dtype="float32", seed=seed, optimisers=adam)
        return program, program.init(batch)

    def trained(programs, steps=3):
        for step in range(steps):
            programs = [(p, p.step(s, [batch], both.control(step, rate=0.1))[0]) for p, s in programs]
        return [program.weights(state) for program, state in programs]

    together = trained([begun(0), begun(1)])
    alone = [*trained([begun(0)]), *trained([begun(1)])]
    for ours, theirs in zip(together, alone, strict=True):
        assert ours.keys() == theirs.keys()
        for name in ours:
            np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)
    assert (together[0]["encoder.weight"] != together[1]["encoder.weight"]).any()


def test_parameters_of_both_sides_and_their_constraints(both, engine, pair):
    batch = both.rows({"x": pair.data["x"][:20]})
    program = both.program(engine, pair, data_size=20, dtype="float32")
    state = program.init(batch)
    assert program.sides(state) == {
        "encoder.bias": "guide",
        "encoder.weight": "guide",
        "loading": "model",
        "noise": "model",
        "spread": "guide",
    }
    assert float(program.weights(state)["noise"]) == pytest.approx(0.0)  # log 1
    assert program.posterior(state, batch)["z"].scale == pytest.approx(0.5)
    draws = program.draws(state, batch, seed=0, particles=4)
    assert draws["z"].shape == (4, 20, 1)
    terms = program.terms(state, batch, seed=0, particles=4)
    weights = program.log_weights(state, batch, seed=0, particles=4, rows=40)
    np.testing.assert_allclose(weights, terms.log_weight(), rtol=1e-4)


def test_pyro_modules_drop_out_in_training_only(both):
    """The user's module is in its own mode again after every call, and one that is in eval mode stays there."""
    seen = []

    class Noting(nn.Dropout):
        def forward(self, input):
            seen.append(self.training)
            return super().forward(input)

    net = nn.Sequential(Noting(0.5), nn.Linear(D, 1))

    def guide(batch, data_size):
        encoder = pyro.module("encoder", net)
        with pyro.plate("data", data_size, subsample=batch["index"]):
            pyro.sample("z", pdist.Normal(encoder(batch["x"]), 0.5).to_event(1))

    pair = Pair(pyro_model, guide, engine="pyro")
    batch = both.rows(generated(20))
    program = both.program("pyro", pair, data_size=20, dtype="float32")
    state = program.init(batch)
    for training, ask in (
        (True, lambda: program.step(state, [batch], both.control(rate=0.0))),
        (False, lambda: program.terms(state, batch, seed=0)),
        (False, lambda: program.log_weights(state, batch, seed=0, particles=2, rows=40)),
        (False, lambda: program.posterior(state, batch)),
    ):
        seen.clear()
        ask()
        assert set(seen) == {training}
        assert net.training
        assert net[0].training
    net.eval()
    seen.clear()
    program.step(state, [batch], both.control(rate=0.0))
    assert seen == [False]


class Shifted(nn.Module):
    """A layer with a buffer that never changes."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(D, 1)
        self.register_buffer("shift", torch.ones(D))

    def forward(self, x):
        return self.layer(x - self.shift)


@pytest.mark.parametrize("native", [True, False])
def test_torch_modules_that_keep_state_are_refused(both, native):
    """What training changes besides parameters would be lost; what never changes is harmless."""

    def program(net):
        def guide(batch, data_size):
            encoder = pyro.module("encoder", net)
            with pyro.plate("data", data_size, subsample=batch["index"]):
                pyro.sample("z", pdist.Normal(encoder(batch["x"]), 0.5).to_event(1))

        listed = {"decoder": MLP(inputs=1, outputs=D, hidden=()), "encoder": net}
        pair = Pair(pyro_model, guide, engine="pyro") if native else Pair(story, story_guide, networks=listed)
        return both.program("pyro", pair, data_size=20, dtype="float32")

    batch = both.rows(generated(20))
    normalised = nn.Sequential(nn.Linear(D, 1), nn.BatchNorm1d(1))
    with pytest.raises(BadInput, match=r"mutable state at 'BatchNorm1d\.running_mean' \(batch normalisation\?\)"):
        program(normalised).init(batch)
    assert normalised[1].running_mean == 0
    assert "encoder.layer.weight" in (fixed := program(Shifted())).weights(fixed.init(batch))


PYRO_FILE = """
import numpy as np, pyro, pyro.distributions as dist, torch
from guidebook.inference import Pair

def model(batch, data_size):
    loading = pyro.param("loading", torch.ones(3))
    with pyro.plate("data", data_size, subsample=batch["index"]):
        z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z * loading, 0.5).to_event(1), obs=batch["x"])

def guide(batch, data_size):
    slope = pyro.param("slope", torch.zeros(3, 1))
    with pyro.plate("data", data_size, subsample=batch["index"]):
        pyro.sample("z", dist.Normal(batch["x"] @ slope, 0.5).to_event(1))

PAIR = Pair(model, guide, name="mine", engine="pyro")
"""


@pytest.fixture
def guidebook(monkeypatch, capsys):
    """The command line in this process: exit status, standard output, standard error."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["guidebook", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        return exit_.value.code, *capsys.readouterr()

    return run


def test_a_file_of_ones_own_at_the_command_line(guidebook, tmp_path):
    file, data, out = tmp_path / "my_pair.py", tmp_path / "data.npz", tmp_path / "run"
    file.write_text(PYRO_FILE)
    np.savez(data, **generated(60))
    status, printed, _ = guidebook("fit", f"{file}:PAIR", "fit.epochs=2", "--data", data, "--out", out, "--json")
    assert status == 0
    assert json.loads(printed)["pair"] == "mine"
    status, printed, _ = guidebook("evaluate", out, "--pair", f"{file}:PAIR", "--particles", 5, "--json")
    assert status == 0
    assert json.loads(printed)["sentences"] == 6

    for arguments, sentence in (
        (("evaluate", out), "--pair FILE.py:NAME"),
        (("evaluate", out, "--pair", f"{file}:PAIRS"), "did you mean 'PAIR'"),
        (("fit", f"{file}:PAIR", "--out", tmp_path / "other"), "the pair brings no data"),
        (("fit", f"{file}:PAIR", "--data", data, "--engine", "numpyro"), "is written in pyro"),
        (("fit", f"{tmp_path}/missing.py:PAIR"), "there is no file"),
        (("fit", f"{file}:PAIR", "--data", data, "model.dim=3", "--out", tmp_path / "third"), "dim"),
    ):
        status, printed, complaint = guidebook(*arguments)
        assert (status, printed) == (2, ""), complaint
        assert sentence in complaint
        assert complaint.count("\n") == 1
        assert complaint.startswith("guidebook: ")


# A framework module in place of a spec.


def story(ppl, batch, nets):
    decoder = ppl.module("decoder", nets["decoder"])
    with ppl.plate("data", batch.data_size, subsample=batch.index), ppl.mask(batch.real):
        z = ppl.sample("z", ppl.dist.Normal(ppl.zeros((1,)), 1.0).to_event(1))
        ppl.sample("x", ppl.dist.Normal(decoder(z), 0.5).to_event(1), obs=batch.x)


def story_guide(ppl, batch, nets):
    encoder = ppl.module("encoder", nets["encoder"])
    with ppl.plate("data", batch.data_size, subsample=batch.index), ppl.mask(batch.real):
        ppl.sample("z", ppl.dist.Normal(encoder(batch.x), 0.5).to_event(1))


class Rows(eqx.Module):
    """An Equinox layer over the last axis of any number of rows."""

    layer: eqx.nn.Linear

    def __call__(self, x):
        return x @ self.layer.weight.T + self.layer.bias


MODULES = {"pyro": (LINEAR, "encoder."), "numpyro": (Rows(AFFINE), "encoder.layer.")}


def test_a_framework_module_in_place_of_a_spec_is_used_as_it_is(both, engine):
    module, prefix = MODULES[engine]
    networks = {"decoder": MLP(inputs=1, outputs=D, hidden=()), "encoder": module}
    pair = Pair(story, story_guide, networks=networks)
    batch = both.rows(generated(20))
    program = both.program(engine, pair, data_size=20, dtype="float32")
    state = program.init(batch)
    weights = program.weights(state)
    layer = module if engine == "pyro" else module.layer
    kept = {name: np.asarray(getattr(layer, name).tolist(), np.float32) for name in ("weight", "bias")}
    for name, value in kept.items():
        np.testing.assert_array_equal(weights[prefix + name], value)
    for step in range(3):
        state, _ = program.step(state, [batch], both.control(step, rate=0.1))
    after = program.weights(state)
    for name, value in kept.items():
        assert (after[prefix + name] != value).any()
        np.testing.assert_array_equal(np.asarray(getattr(layer, name).tolist(), np.float32), value)
    again = both.program(engine, pair, data_size=20, dtype="float32")
    np.testing.assert_array_equal(again.weights(again.init(batch))[prefix + "weight"], kept["weight"])


@pytest.mark.parametrize("unlisted", ["module", "spec", "name"])
def test_a_network_that_would_never_be_fitted_is_refused(both, engine, unlisted):
    """A story's networks are those of `Pair.networks`, under their own names."""
    module, _ = MODULES[engine]
    listed = {"decoder": MLP(inputs=1, outputs=D, hidden=()), "encoder": MLP(inputs=D, outputs=1, hidden=())}
    instead = {
        "module": lambda nets: module,
        "spec": lambda nets: listed["encoder"],
        "name": lambda nets: nets["decoder"],
    }

    def guide(ppl, batch, nets):
        encoder = ppl.module("other", instead[unlisted](nets))
        with ppl.plate("data", batch.data_size, subsample=batch.index), ppl.mask(batch.real):
            ppl.sample("z", ppl.dist.Normal(encoder(batch.x), 0.5).to_event(1))

    program = both.program(engine, Pair(story, guide, networks=listed), data_size=20, dtype="float32")
    with pytest.raises(BadInput, match=r"network 'other' .*write ppl.module\('other', nets\['other'\]\)"):
        program.init(both.rows(generated(20)))


def test_a_module_of_the_other_framework_is_refused(both, engine):
    module, _ = MODULES["numpyro" if engine == "pyro" else "pyro"]
    networks = {"decoder": MLP(inputs=1, outputs=D, hidden=()), "encoder": module}
    with pytest.raises(BadInput, match=f"on {engine} a spec or"):
        both.program(engine, Pair(story, story_guide, networks=networks), data_size=20, dtype="float32")
