"""What the libraries do in silence, and what becomes of it here: each trap is shown on the stock library first.

Ours alone, elsewhere: masks on one side (`test_masks.py`), scans under stock SVI (`test_scan.py`), programs of one pair in one
process (`test_native.py`), runs without pickle and batch normalisation of torch (`test_fit.py`, `test_native.py`).
"""

from __future__ import annotations

import math
import warnings
import zipfile
from importlib.metadata import distributions, version
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as ndist
import pyro
import pyro.distributions as pdist
import pytest
import torch
from numpyro import handlers
from numpyro.contrib.control_flow import scan
from numpyro.primitives import mutable
from pyro import poutine

from guidebook.guides import Pair
from guidebook.inference import IWAE, KL, TVO, InfoVAE, ReweightedWakeSleep
from guidebook.models import MLP, BadInput

pytestmark = pytest.mark.usefixtures("_float64")
X = np.array([0.3, -1.2, 2.0])


@pytest.fixture(autouse=True)
def _own_store():
    with pyro.get_param_store().scope(), torch.random.fork_rng():
        yield


class Stock:
    """One library's primitives by common names; losses and gradients of programs under one of its objectives."""

    def __init__(self, engine):
        self.engine = engine
        self.ppl, self.dist = (pyro, pdist) if engine == "pyro" else (numpyro, ndist)
        self.elbos = pyro.infer if engine == "pyro" else numpyro.infer
        self.scale = poutine.scale if engine == "pyro" else handlers.scale

    def array(self, value):
        return torch.tensor(value, dtype=torch.float64) if self.engine == "pyro" else jnp.asarray(value)

    def loss(self, elbo, model, guide, seed=0):
        if self.engine == "pyro":
            pyro.set_rng_seed(seed)
            return float(elbo.loss(model, guide))
        return float(elbo.loss(jax.random.key(seed), {}, model, guide))

    def losses(self, elbo, model, guide, count):
        """(count,) under as many seeds."""
        if self.engine == "pyro":
            return np.array([self.loss(elbo, model, guide, seed) for seed in range(count)])
        keys = jax.random.split(jax.random.key(0), count)
        return np.asarray(jax.jit(jax.vmap(lambda key: elbo.loss(key, {}, model, guide)))(keys))

    def gradients(self, elbo, model, guide, name, value, count):
        """Of the loss to the parameter `name` at `value`, (count,) under as many seeds."""
        if self.engine == "numpyro":
            keys = jax.random.split(jax.random.key(0), count)
            slope = jax.grad(lambda moved, key: elbo.loss(key, {name: moved}, model, guide))
            return np.asarray(jax.jit(jax.vmap(slope, (None, 0)))(jnp.asarray(value), keys))
        found = []
        for seed in range(count):
            pyro.clear_param_store()
            pyro.set_rng_seed(seed)
            elbo.loss_and_grads(model, guide)
            found.append(float(dict(pyro.get_param_store().named_parameters())[name].grad))
        return np.array(found)


@pytest.fixture
def stock(engine):
    return Stock(engine)


# Weights and scales

SHIFT, SPREAD, BETA = 0.4, 0.5, 0.1
KL_OF_ONE = 0.5 * (SPREAD**2 + SHIFT**2 - 1 - 2 * math.log(SPREAD))


def annealed(stock, model_scale, guide_scale):
    """z_n ~ N(0, 1) alone: the ELBO is −Σ KL(N(SHIFT, SPREAD²) ‖ N(0, 1)), and a scale has nothing else to act on."""
    zeros = stock.array(np.zeros(3))

    def model():
        with stock.ppl.plate("data", 3), stock.scale(scale=model_scale):
            stock.ppl.sample("z", stock.dist.Normal(zeros, 1.0))

    def guide():
        with stock.ppl.plate("data", 3), stock.scale(scale=guide_scale):
            stock.ppl.sample("z", stock.dist.Normal(zeros + SHIFT, SPREAD))

    return model, guide


@pytest.mark.parametrize(("model_scale", "guide_scale"), [(BETA, 1.0), (1.0, BETA), (BETA, BETA), (1.0, 1.0)])
def test_a_scale_on_one_side_is_two_objectives(stock, model_scale, guide_scale):
    """Trace: β_p E log p − β_q E log q. TraceMeanField: β_q KL, the model's scale unread."""
    programs = annealed(stock, model_scale, guide_scale)
    exact_field = 3 * guide_scale * KL_OF_ONE
    assert stock.loss(stock.elbos.TraceMeanField_ELBO(), *programs) == pytest.approx(exact_field, rel=1e-6)
    expected_p = -0.5 * (math.log(2 * math.pi) + SPREAD**2 + SHIFT**2)
    expected_q = -0.5 * (math.log(2 * math.pi) + 1) - math.log(SPREAD)
    exact_trace = 3 * (guide_scale * expected_q - model_scale * expected_p)
    draws = stock.losses(stock.elbos.Trace_ELBO(), *programs, 200)
    assert abs(draws.mean() - exact_trace) < 4.5 * draws.std() / 200**0.5 + 1e-9
    assert (abs(exact_trace - exact_field) < 1e-9) == (model_scale == guide_scale)

    # Ours: a weight reaches both sides, and a scale of one's own is refused.
    ours = KL().on(stock.engine, weight=BETA)
    if model_scale == guide_scale == 1.0:
        assert stock.loss(ours, *programs) == pytest.approx(3 * BETA * KL_OF_ONE, rel=1e-6)
    else:
        with pytest.raises(BadInput, match=r"scaled by .* set divergence.weight"):
            stock.loss(ours, *programs)


ODDS = np.array([0.4, 0.7])
"""q(z = 1) and p(z = 1); x ~ N(z, 1) with x = 1.5: the weight of either z is known."""
LOG_W = np.array(
    [np.log((1 - ODDS[1]) / (1 - ODDS[0])) - 0.5 * 1.5**2, np.log(ODDS[1] / ODDS[0]) - 0.5 * 0.5**2]
) - 0.5 * np.log(2 * np.pi)


def coin(stock, size=1):
    """One row of `size`, so that its scale is `size`."""

    def model():
        with stock.ppl.plate("data", size, subsample_size=1):
            z = stock.ppl.sample("z", stock.dist.Bernoulli(stock.array(ODDS[1:])))
            stock.ppl.sample("x", stock.dist.Normal(z, 1.0), obs=stock.array([1.5]))

    def guide():
        with stock.ppl.plate("data", size, subsample_size=1):
            stock.ppl.sample("z", stock.dist.Bernoulli(stock.array(ODDS[:1])))

    return model, guide


def log_mean_exp(*values):
    return math.log(np.mean(np.exp(values)))


def losses(stock, elbo, *programs):
    return sorted(set(stock.losses(elbo, *programs, 40).round(4)))


def test_a_scale_inside_the_log_mean_exp(stock):
    """Two particles of a coin make three losses, all known: Pyro's scale is inside, NumPyro's and ours outside."""
    size, pairs = 3, [(LOG_W[a], LOG_W[b]) for a, b in ((0, 0), (0, 1), (1, 1))]
    outside = sorted(round(-size * log_mean_exp(*pair), 4) for pair in pairs)
    inside = sorted(round(-log_mean_exp(*(size * value for value in pair)), 4) for pair in pairs)
    assert inside != outside
    found = losses(stock, stock.elbos.RenyiELBO(alpha=0, num_particles=2), *coin(stock, size))
    np.testing.assert_allclose(found, inside if stock.engine == "pyro" else outside, atol=2e-4)
    ours = ReweightedWakeSleep(particles=2).on(stock.engine)  # reports the importance-weighted bound
    np.testing.assert_allclose(losses(stock, ours, *coin(stock, size)), outside, atol=2e-4)


def shared_coin(stock):
    """One coin for two data, so that no plate encloses every site."""

    def model():
        w = stock.ppl.sample("w", stock.dist.Bernoulli(stock.array(0.5)))
        with stock.ppl.plate("data", 2):
            z = stock.ppl.sample("z", stock.dist.Normal(stock.array(np.zeros(2)), 1.0))
            stock.ppl.sample("x", stock.dist.Normal(z + w, 1.0), obs=stock.array([0.0, 1.5]))

    def guide():
        stock.ppl.sample("w", stock.dist.Bernoulli(stock.array(0.5)))
        with stock.ppl.plate("data", 2):
            stock.ppl.sample("z", stock.dist.Delta(stock.array(np.zeros(2))))

    return model, guide


def test_weights_are_per_datum_only_where_every_latent_is(stock):
    """A latent shared by all data turns the stock IWAE into one weight for the whole batch; ours says so and stops."""
    joint = [sum(-0.5 * (x - w) ** 2 - math.log(2 * math.pi) for x in (0.0, 1.5)) for w in (0.0, 1.0)]
    expected = sorted(round(-log_mean_exp(joint[a], joint[b]), 4) for a, b in ((0, 0), (0, 1), (1, 1)))
    found = losses(stock, stock.elbos.RenyiELBO(alpha=0, num_particles=2), *shared_coin(stock))
    np.testing.assert_allclose(found, expected, atol=2e-4)
    for divergence in (ReweightedWakeSleep(particles=2), TVO(particles=2), KL(estimator="score", particles=2)):
        with pytest.raises(BadInput, match="the latent 'w' stands outside the plate 'data', one draw for all data"):
            stock.loss(divergence.on(stock.engine), *shared_coin(stock))


# Gradients and formulas


def test_a_discrete_guide_has_no_pathwise_gradient(stock):
    """By enumeration. Pyro scores such a draw; NumPyro's Trace_ELBO has gradients that average to nothing, in silence."""
    name, logit = "logit", math.log(ODDS[0] / (1 - ODDS[0]))

    def guide():
        found = stock.ppl.param(name, stock.array(logit))
        with stock.ppl.plate("data", 1):
            stock.ppl.sample("z", stock.dist.Bernoulli(logits=found + stock.array([0.0])))

    model, _ = coin(stock)
    chance = np.array([1 - ODDS[0], ODDS[0]])
    score = np.array([0.0, 1.0]) - ODDS[0]
    exact = -(chance * score * LOG_W).sum()
    assert abs(exact) > 0.1

    def enumerated(elbo):
        """The gradient at either draw, by draw: the seeds show both."""
        seen = set(stock.gradients(elbo, model, guide, name, logit, 25).round(5))
        assert len(seen) == 2
        return seen

    trace = enumerated(stock.elbos.Trace_ELBO())
    assert trace == {round(value, 5) for value in (score if stock.engine == "numpyro" else -score * LOG_W)}
    assert (chance * score).sum() == pytest.approx(0.0, abs=1e-12)
    ours = enumerated(KL(estimator="score").on(stock.engine))
    assert ours == {round(value, 5) for value in -score * LOG_W}
    for divergence in (KL(), IWAE(particles=1), InfoVAE()):
        with pytest.raises(BadInput, match=r"'z' from a Bernoulli.*, which has no gradient through its draws"):
            stock.loss(divergence.on(stock.engine), model, coin(stock)[1])


def test_a_kl_without_a_formula_is_sampled_in_silence(stock):
    """Student's t against a normal. Ours names the site (`test_a_kl_without_a_formula_is_sampled_and_said`)."""

    def model():
        with stock.ppl.plate("data", 2):
            stock.ppl.sample("z", stock.dist.Normal(stock.array(np.zeros(2)), 1.0))

    def guide():
        with stock.ppl.plate("data", 2):
            stock.ppl.sample("z", stock.dist.StudentT(5.0, stock.array(np.zeros(2)), 1.0))

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        field, trace = (
            [stock.loss(elbo(), model, guide, seed) for seed in range(4)]
            for elbo in (stock.elbos.TraceMeanField_ELBO, stock.elbos.Trace_ELBO)
        )
    assert len(set(field)) == 4
    np.testing.assert_allclose(field, trace, rtol=1e-6)


def test_a_factor_in_the_guide_has_the_other_sign(stock):
    """+c there is a penalty of c; here a site of the guide alone is refused, and the model's factor counts as it says."""
    penalty = {"has_rsample": True} if stock.engine == "pyro" else {}

    def plain():
        with stock.ppl.plate("data", 1):
            stock.ppl.sample("z", stock.dist.Normal(stock.array(np.zeros(1)), 1.0))

    def penalised():
        with stock.ppl.plate("data", 1):
            stock.ppl.sample("z", stock.dist.Normal(stock.array(np.zeros(1)), 1.0))
            stock.ppl.factor("penalty", stock.array([2.5]), **penalty)

    elbo, ours = stock.elbos.Trace_ELBO(), KL().on(stock.engine)
    assert stock.loss(elbo, plain, penalised) == pytest.approx(2.5)
    assert stock.loss(elbo, penalised, plain) == pytest.approx(-2.5)
    assert stock.loss(ours, penalised, plain) == pytest.approx(-2.5)
    with pytest.raises(BadInput, match="the guide samples 'penalty' and the model does not"):
        stock.loss(ours, plain, penalised)


# State and names


def test_mutable_state_is_lost_with_a_second_particle(both):
    """NumPyro warns and forgets it; here it is refused with any number, since weights are all that a run keeps."""

    def model(batch=None, data_size=1):
        with numpyro.plate("data", 1):
            numpyro.sample("z", ndist.Normal(jnp.zeros(1), 1.0))

    def guide(batch=None, data_size=1):
        state: Any = mutable("count", {"value": jnp.zeros(())})
        state["value"] = state["value"] + 1
        loc = numpyro.param("loc", jnp.zeros(1))
        with numpyro.plate("data", 1):
            numpyro.sample("z", ndist.Normal(loc, 1.0))

    kept = []
    for particles in (1, 2):
        svi = numpyro.infer.SVI(model, guide, numpyro.optim.SGD(0.1), numpyro.infer.Trace_ELBO(particles))
        state = svi.init(jax.random.key(0))
        with warnings.catch_warnings(record=True):
            warnings.simplefilter("always")
            kept.append(svi.update(state)[0].mutable_state)
    assert kept[0] is not None
    assert kept[1] is None
    svi = numpyro.infer.SVI(model, guide, numpyro.optim.SGD(0.1), KL().on("numpyro"))
    with pytest.raises(NotImplementedError, match="does not support mutable state"):
        svi.update(svi.init(jax.random.key(0)))
    program = both.program("numpyro", Pair(model, guide, engine="numpyro"), data_size=1)
    with pytest.raises(BadInput, match="mutable state at 'count'"):
        program.init(both.rows({"x": np.zeros((1, 1))}))


def test_an_elbo_remembers_the_plates_of_its_first_program(stock):
    """Pyro guesses once where particles go; our losses remember nothing."""

    def plated(*plates):
        def program():
            with stock.ppl.plate("data", 2, dim=-1):
                if "inner" in plates:
                    with stock.ppl.plate("inner", 3, dim=-2):
                        stock.ppl.sample("z", stock.dist.Normal(stock.array(np.zeros((3, 2))), 1.0))
                else:
                    stock.ppl.sample("z", stock.dist.Normal(stock.array(np.zeros(2)), 1.0))

        return program

    one, two = plated(), plated("inner")
    if stock.engine == "pyro":
        elbo = pyro.infer.Trace_ELBO(num_particles=2, vectorize_particles=True)
        elbo.loss(one, one)
        with pytest.raises(ValueError, match="collide at dim=-2"):
            elbo.loss(two, two)
    ours = KL(particles=2).on(stock.engine)
    assert [stock.loss(ours, program, program) for program in (one, two, one)] == pytest.approx([0.0] * 3, abs=1e-12)


def test_one_name_for_two_torch_networks(both):
    """Pyro keeps the first one's weights; the second runs with its own, which no optimiser sees."""
    first, second = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
    pyro.module("net", first)
    assert pyro.module("net", second).weight is not pyro.param("net$$$weight")

    def model(batch, data_size):
        with pyro.plate("data", data_size, subsample=batch["index"]):
            z = pyro.sample("z", pdist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", pdist.Normal(pyro.module("net", first)(z), 1.0).to_event(1), obs=batch["x"])

    def guide(batch, data_size):
        with pyro.plate("data", data_size, subsample=batch["index"]):
            pyro.sample("z", pdist.Normal(pyro.module("net", second)(batch["x"]), 1.0).to_event(1))

    program = both.program("pyro", Pair(model, guide, engine="pyro"), data_size=3, dtype="float32")
    with pytest.raises(BadInput, match=r"two networks are called 'net' in pyro\.module"):
        program.init(both.rows({"x": X[:, None].astype(np.float32)}))


def test_torch_compile_renames_what_it_wraps(both):
    plain = torch.nn.Linear(1, 2)
    compiled = torch.compile(plain, backend="eager")
    assert list(compiled.state_dict()) == ["_orig_mod.weight", "_orig_mod.bias"]

    def model(ppl, batch, nets):
        decoder = ppl.module("decoder", nets["decoder"])
        with ppl.plate("data", batch.data_size, subsample=batch.index), ppl.mask(batch.real):
            z = ppl.sample("z", ppl.dist.Normal(ppl.zeros((1,)), 1.0).to_event(1))
            ppl.sample("x", ppl.dist.Normal(decoder(z), 1.0).to_event(1), obs=batch.x)

    def guide(ppl, batch, nets):
        found = ppl.module("encoder", nets["encoder"])(batch.x)
        with ppl.plate("data", batch.data_size, subsample=batch.index), ppl.mask(batch.real):
            ppl.sample("z", ppl.dist.Normal(found[..., :1], ppl.exp(found[..., 1:])).to_event(1))

    batch, names, terms = both.rows({"x": X[:, None]}), [], []
    for encoder in (plain, compiled):
        networks = {"decoder": MLP(inputs=1, outputs=1, hidden=()), "encoder": encoder}
        pair = Pair(model, guide, networks=networks)
        program = both.program("pyro", pair, data_size=3)
        state = program.init(batch)
        names.append(sorted(program.weights(state)))
        terms.append(program.terms(state, batch, seed=0).elbo())
    assert names[0] == names[1] == ["decoder.bias_0", "decoder.weight_0", "encoder.bias", "encoder.weight"]
    np.testing.assert_allclose(*terms, rtol=1e-12)


def test_a_parameter_store_is_written_as_a_program(tmp_path):
    """Reading it back runs what it names. Ours hold arrays only (`test_a_run_is_a_folder_without_pickle`)."""
    pyro.param("spread", torch.tensor(1.0), constraint=pdist.constraints.positive)
    pyro.get_param_store().save(str(tmp_path / "store"))
    with zipfile.ZipFile(tmp_path / "store") as store:
        written = store.read(next(name for name in store.namelist() if name.endswith("data.pkl")))
    assert b"ctorch.distributions.constraints\n" in written


def test_a_likelihood_without_its_weights(both):
    """NumPyro's log_likelihood runs the model with weights as they start, unless they are substituted."""
    z, trained = np.array([[0.5], [-1.0], [2.0]]), 3.0

    def model(batch, data_size):
        slope = numpyro.param("slope", 0.0)
        with numpyro.plate("data", data_size, subsample_size=len(batch["x"])):
            drawn = numpyro.sample("z", ndist.Normal(jnp.zeros(1), 1.0).to_event(1))
            numpyro.sample("x", ndist.Normal(slope * drawn, 1.0).to_event(1), obs=batch["x"])

    def guide(batch, data_size):
        loc = numpyro.param("loc", jnp.zeros(1))
        with numpyro.plate("data", data_size, subsample_size=len(batch["x"])):
            numpyro.sample("z", ndist.Normal(loc, 1.0).to_event(1))

    def exact(slope, z):
        return -0.5 * (X - slope * z) ** 2 - 0.5 * math.log(2 * math.pi)

    batch = both.rows({"x": X[:, None]})
    found = numpyro.infer.log_likelihood(model, {"z": z[None]}, batch={"x": X[:, None]}, data_size=3)
    np.testing.assert_allclose(found["x"][0], exact(0.0, z[:, 0]), rtol=1e-10)
    program = both.program("numpyro", Pair(model, guide, engine="numpyro"), data_size=3)
    state = program.init(batch)
    state = program.load_weights(state, program.weights(state) | {"slope": np.array(trained)})
    ours = program.terms(state, batch, seed=0).log_likelihood["x"]
    drawn = program.draws(state, batch, seed=0, particles=1)["z"][..., 0]
    np.testing.assert_allclose(ours, exact(trained, drawn), rtol=1e-10)


def test_a_guide_that_does_not_scan_what_the_model_scans():
    """As many rows as steps, so that replaying row t at step t would broadcast: the library stops, and so do we."""
    steps = 3

    def model():
        def step(carry, x):
            with numpyro.plate("data", 3):
                z = numpyro.sample("z", ndist.Normal(jnp.zeros(3), 1.0))
                numpyro.sample("x", ndist.Normal(z, 1.0), obs=x)
            return carry, None

        scan(step, 0.0, jnp.zeros((steps, 3)))

    def guide():
        with numpyro.plate("data", 3):
            numpyro.sample("z", ndist.Delta(jnp.arange(3.0)))

    with pytest.raises(ValueError, match="shapes disagree at site 'z'"):
        numpyro.infer.Trace_ELBO().loss(jax.random.key(0), {}, model, guide)
    with pytest.raises(BadInput, match=r"'z' has the batch shape \(3, 3\) in the model and \(3,\) in the guide"):
        KL().on("numpyro").loss(jax.random.key(0), {}, model, guide)


def test_what_we_use_of_arviz_imports():
    """arviz-plots 0.8 does not import with matplotlib 3.11: no package of ours may bring both."""
    from arviz_base import from_dict

    assert from_dict({"posterior": {"z": np.zeros((2, 3))}}, sample_dims=["sample"])["posterior"]["z"].shape == (2, 3)
    plots = [found.version for found in distributions() if found.name == "arviz-plots"]
    matplotlib = tuple(map(int, version("matplotlib").split(".")[:2]))
    assert matplotlib < (3, 11) or not any(found.startswith("0.8") for found in plots)
