"""Semi-amortised training from a recipe: it fits, goes on after an interruption, and is refused where it cannot be."""

from __future__ import annotations

import signal
import sys

import numpy as np
import pytest

from guidebook.engines.protocol import Refinement
from guidebook.guides import Pair
from guidebook.inference import fit
from guidebook.inference import progress as display
from guidebook.inference.files import read_arrays
from guidebook.inference.recipe import parse, read
from guidebook.inference.resolve import resolve
from guidebook.inference.run import program_of
from guidebook.models.errors import BadInput, Interrupted

SHORT = "fit.refine={steps=3, learning_rate=0.5}"


@pytest.mark.parametrize("backpropagate", ["true", "false"])
def test_a_recipe_asks_for_it_and_a_resumed_run_is_as_never_interrupted(tiny, tmp_path, engine, backpropagate):
    settings = [SHORT, f"fit.refine.backpropagate={backpropagate}", "fit.epochs=3", "data.buckets=1"]
    run = fit(tiny, *settings, engine=engine, out=tmp_path / "whole", progress=False)
    assert run.losses[-1] < run.losses[0] - 0.3
    if engine == "numpyro":
        assert list(run.history("valid")["compilations"]) == [1] * 3

    def stop(self, number):
        if number == 7:
            signal.raise_signal(signal.SIGINT)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(display.Display, "step", stop)
        with pytest.raises(Interrupted):
            fit(tiny, *settings, engine=engine, out=tmp_path / "run", progress=False)
    fit(tiny, *settings, engine=engine, out=tmp_path / "run", resume=True, progress=False)
    one, other = (read_arrays(tmp_path / name / "state.safetensors")[0] for name in ("whole", "run"))
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def test_the_table_reaches_the_engine(tiny, engine):
    recipe, pair, _ = resolve(tiny, [SHORT, "fit.refine.clip=inf"], engine=engine)
    assert program_of(recipe, pair, 12, 40).settings.refinement == Refinement(3, 0.5, 0.5, np.inf, True)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            ["guide.posterior={kind='bernoulli'}", "divergence={kind='kl', estimator='score'}"],
            "needs a gradient through draws, and the posterior 'bernoulli' has none",
        ),
        (["model.prior={kind='vamp', dim=3}"], "the prior 'vamp' reads the encoder too: use another prior"),
        (["fit.refine.momentum=1.0"], r"fit\.refine\.momentum = 1\.0 is wrong"),
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused(tiny, tmp_path, settings, said):
    bits = ["model.prior={kind='bernoulli', dim=3}"] if "bernoulli" in settings[0] else []
    with pytest.raises(BadInput, match=said):
        fit(tiny, SHORT, *bits, *settings, out=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_pairs_without_a_posterior_network_of_ours_are_refused(tiny, tmp_path):
    recipe = parse({"pair": "language_model", "data": read(tiny)[0]["data"]})
    with pytest.raises(BadInput, match="the guide of the pair 'language_model' asks one 0 times: leave it out"):
        fit(recipe, SHORT, "fit.batch_size=8", out=tmp_path / "run", progress=False)
    pyro, torch = pytest.importorskip("pyro"), sys.modules["torch"]

    def model(batch, data_size):
        with pyro.plate("data", data_size, subsample_size=len(batch["x"])):
            z = pyro.sample("z", pyro.distributions.Normal(0.0 * batch["x"], 1.0))
            pyro.sample("x", pyro.distributions.Normal(z, 1.0), obs=batch["x"])

    def guide(batch, data_size):
        slope = pyro.param("slope", torch.zeros(()))
        with pyro.plate("data", data_size, subsample_size=len(batch["x"])):
            pyro.sample("z", pyro.distributions.Normal(slope * batch["x"], 1.0))

    pair = Pair(model, guide, name="native", engine="pyro", data={"x": np.ones(40, np.float32)})
    with pytest.raises(BadInput, match=r"fit\.refine .* the guide of the pair 'native' asks one 0 times"):
        fit(pair, SHORT, out=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()
