"""What an objective does whatever the pair: β, free bits, analytic KL, scales, subsamples, global latents, stock SVI.

w ~ N(0, 1) once for all data;   z_n ~ N(0, I);   x_n ~ N(A z_n + w, r);   q normal, so that everything is known
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pyro
import pytest
import torch
from numpyro import handlers
from pyro import poutine

from guidebook.engines import load
from guidebook.guides import Pair
from guidebook.inference import KL, FreeBits
from guidebook.models import MLP, BadInput

pytestmark = pytest.mark.usefixtures("_float64")
D, Z, N = 3, 2, 12
NETS = {
    "decoder": MLP(inputs=Z, outputs=D, hidden=()),
    "encoder": MLP(inputs=D, outputs=2 * Z, hidden=(4,)),
    "summary": MLP(inputs=1, outputs=2, hidden=()),
}


def model(ppl, batch, nets):
    decoder = ppl.module("decoder", nets["decoder"])
    with ppl.plate("data", batch.data_size, subsample=batch.index), ppl.mask(batch.real):
        z = ppl.sample("z", ppl.dist.Normal(ppl.zeros((Z,)), 1.0).to_event(1))
        ppl.sample("x", ppl.dist.Normal(decoder(z), 0.7).to_event(1), obs=batch.x)


def guide(ppl, batch, nets):
    encoder = ppl.module("encoder", nets["encoder"])
    with ppl.plate("data", batch.data_size, subsample=batch.index), ppl.mask(batch.real):
        found = encoder(batch.x)
        ppl.sample("z", ppl.dist.Normal(found[..., :Z], ppl.exp(found[..., Z:])).to_event(1))


def global_model(ppl, batch, nets):
    """The same with a global w; its event is a vector of one."""
    decoder = ppl.module("decoder", nets["decoder"])
    w = ppl.sample("w", ppl.dist.Normal(ppl.zeros((1,)), 1.0).to_event(1))
    with ppl.plate("data", batch.data_size, subsample=batch.index), ppl.mask(batch.real):
        z = ppl.sample("z", ppl.dist.Normal(ppl.zeros((Z,)), 1.0).to_event(1))
        ppl.sample("x", ppl.dist.Normal(decoder(z) + w, 0.7).to_event(1), obs=batch.x)


def global_guide(ppl, batch, nets):
    found = ppl.module("summary", nets["summary"])(ppl.zeros((1,)))
    ppl.sample("w", ppl.dist.Normal(found[..., :1], ppl.exp(found[..., 1:])).to_event(1))
    guide(ppl, batch, nets)


PAIR = Pair(model=model, guide=guide, networks=NETS, sites={"z": ("dim",), "x": ("dim",)})
GLOBAL = Pair(model=global_model, guide=global_guide, networks=NETS)


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(0).normal(size=(N, D))


def fitted(both, engine, batch, pair=PAIR, **settings):
    program = both.program(engine, pair, data_size=N, seed=2, **settings)
    return program, program.init(batch)


def test_the_loss_is_affine_in_its_weight_with_the_kl_as_slope(both, engine, x):
    program, state = fitted(both, engine, both.rows({"x": x}))
    found = program.terms(state, both.rows({"x": x}), seed=0)
    plain = KL()
    zero, one, half = (plain.loss(found, weight) for weight in (0.0, 1.0, 0.5))
    np.testing.assert_allclose(half, (zero + one) / 2, rtol=1e-12)
    np.testing.assert_allclose(one - zero, found.total_kl(), rtol=1e-10)
    np.testing.assert_allclose(zero, -found.reconstruction()[0], rtol=1e-12)
    # The step applies the very weight it is given, to both sides.
    gradients = [
        both.gradients(*fitted(both, engine, both.rows({"x": x})), both.rows({"x": x}), weight=weight)[0]
        for weight in (0.0, 0.5, 1.0)
    ]
    for name in gradients[0]:
        middle = (gradients[0][name] + gradients[2][name]) / 2
        np.testing.assert_allclose(gradients[1][name], middle, rtol=1e-9, atol=1e-12)


def test_analytic_kl_is_the_mean_of_the_sampled_one(both, engine, x):
    batch = both.rows({"x": x})
    program, state = fitted(both, engine, batch)
    found = program.terms(state, batch, seed=0, particles=4000)
    ratio = found.log_posterior["z"] - found.log_prior["z"]
    errors = ratio.std(0) / 4000**0.5
    assert np.abs((ratio.mean(0) - found.kl_of("z").mean(0)) / errors).max() < 4.7  # 12 means: false alarm 3e-5


@pytest.mark.parametrize("per", ["dimension", "sentence"])
def test_free_bits_floor_the_kl_and_stop_its_gradient(both, engine, x, per):
    batch = both.rows({"x": x})
    plain, info = both.gradients(*fitted(both, engine, batch), batch)
    program, state = fitted(both, engine, batch)
    found = program.terms(state, batch, seed=0)

    high = FreeBits(nats=1e3, per=per)
    np.testing.assert_allclose(high.floored(found.kl["z"]), 1e3, rtol=1e-12)
    between = FreeBits(nats=float(np.median(found.kl_of("z"))), per=per)
    assert (between.floored(found.kl["z"]) >= between.nats - 1e-12).all()
    assert (between.floored(found.kl["z"]) >= found.kl_of("z") - 1e-12).all()

    floored, capped = both.gradients(*fitted(both, engine, batch, divergence=KL(free_bits=high)), batch)
    unweighted, _ = both.gradients(*fitted(both, engine, batch), batch, weight=0.0)
    for name in floored:
        np.testing.assert_allclose(floored[name], unweighted[name], rtol=1e-9, atol=1e-14)
    assert capped["kl/z"] == pytest.approx(info["kl/z"], rel=1e-9)  # what is reported stays the plain KL

    none, same = both.gradients(
        *fitted(both, engine, batch, divergence=KL(free_bits=FreeBits(nats=1e-9, per=per))), batch
    )
    assert same["objective"] == pytest.approx(info["objective"], rel=1e-12)
    for name in plain:
        np.testing.assert_allclose(none[name], plain[name], rtol=1e-9, atol=1e-14)


def test_a_kl_without_a_formula_is_sampled_and_said(both, engine, x):
    """Student's t against a normal: no library has that KL."""

    def heavy(ppl, batch, nets):
        encoder = ppl.module("encoder", nets["encoder"])
        with ppl.plate("data", batch.data_size, subsample=batch.index), ppl.mask(batch.real):
            found = encoder(batch.x)
            ppl.sample("z", ppl.dist.StudentT(5.0, found[..., :Z], ppl.exp(found[..., Z:])).to_event(1))

    batch = both.rows({"x": x})
    program, state = fitted(both, engine, batch, Pair(model=model, guide=heavy, networks=NETS))
    found = program.terms(state, batch, seed=0, particles=7)
    assert found.sampled == ("z",)
    assert found.kl == {}
    np.testing.assert_allclose(found.kl_of("z"), found.log_posterior["z"] - found.log_prior["z"], rtol=1e-12)
    state, info = program.step(state, [batch], both.control(rate=1e-3))
    assert np.isfinite(float(info["kl/z"]))


def test_a_scaled_likelihood_is_refused(both, engine, x):
    wrap = poutine.scale if engine == "pyro" else handlers.scale

    def weighted(ppl, batch, nets):
        decoder = ppl.module("decoder", nets["decoder"])
        with ppl.plate("data", batch.data_size, subsample=batch.index):
            z = ppl.sample("z", ppl.dist.Normal(ppl.zeros((Z,)), 1.0).to_event(1))
            with wrap(scale=3.0):
                ppl.sample("x", ppl.dist.Normal(decoder(z), 0.7).to_event(1), obs=batch.x)

    with pytest.raises(BadInput, match="'x' is scaled by 3 in the model, where"):
        fitted(both, engine, both.rows({"x": x}), Pair(model=weighted, guide=guide, networks=NETS))


@pytest.mark.parametrize(
    ("pair", "sentence"),
    [
        (Pair(model=global_model, guide=guide, networks=NETS), "the model samples 'w' and the guide does not"),
        (Pair(model=model, guide=global_guide, networks=NETS), "the guide samples 'w' and the model does not"),
        (
            Pair(model=model, guide=guide, networks=NETS, plate="rows"),
            "no site of the model stands in the plate 'rows'",
        ),
    ],
)
def test_sites_that_do_not_match_are_refused(both, engine, x, pair, sentence):
    with pytest.raises(BadInput, match=sentence):
        fitted(both, engine, both.rows({"x": x}), pair)


def test_a_latent_is_the_same_on_both_sides(both, engine, x):
    """Row by row in both or in neither, with the same event; else terms are broadcast, and silently wrong."""

    def scattered(ppl, batch, nets):
        with ppl.plate("data", batch.data_size, subsample=batch.index):
            for site, size in (("w", 1), ("z", Z)):
                ppl.sample(site, ppl.dist.Normal(ppl.zeros((len(batch.index), size)), 1.0).to_event(1))

    def flat(ppl, batch, nets):
        with ppl.plate("data", batch.data_size, subsample=batch.index):
            ppl.sample("z", ppl.dist.Normal(nets["encoder"](batch.x)[..., 0], 1.0))

    def deaf(ppl, batch, nets):
        with ppl.plate("data", batch.data_size, subsample=batch.index):
            ppl.sample("z", ppl.dist.Normal(ppl.zeros((Z,)), 1.0).to_event(1))
            ppl.sample("x", ppl.dist.Normal(ppl.zeros((D,)), 1.0).to_event(1), obs=batch.x)

    for pair, sentence in (
        (Pair(model=global_model, guide=scattered, networks=NETS), "'w' stands in the plate 'data' in the guide, and"),
        (Pair(model=deaf, guide=flat, networks=NETS), r"'z' has the event shape \(2,\) in the model and \(\) in"),
    ):
        with pytest.raises(BadInput, match=sentence):
            fitted(both, engine, both.rows({"x": x[:3]}), pair)


@pytest.mark.parametrize("pair", [PAIR, GLOBAL], ids=["local", "global"])
def test_minibatches_are_unbiased(both, engine, x, pair):
    """The analytic parts of a partition's mini-batches add up to those of the full data; a global KL counts once."""
    whole = both.rows({"x": x})
    program, state = fitted(both, engine, whole, pair)
    parts = []
    for rows in np.split(np.random.default_rng(1).permutation(N), 3):
        part = both.rows({"x": x[rows]}, filler=2)
        parts.append(program.terms(state, part | {"index": part["index"] + 0}, seed=0))
    found = program.terms(state, whole, seed=0)
    for site in found.kl:
        total = sum((part.kl_of(site) * part.weight).sum() for part in parts)
        assert total == pytest.approx(found.kl_of(site).sum(), rel=1e-12)
    if "w" in found.kl:
        weights = program.weights(state)
        loc, log_scale = weights["summary.bias_0"]
        exact = 0.5 * (loc**2 + np.exp(2 * log_scale) - 2 * log_scale - 1)
        assert found.kl_of("w").sum() == pytest.approx(exact, rel=1e-10)


def test_gradients_of_minibatches_average_to_the_full_gradient(both, engine, x):
    """With the same latents in both, so that nothing but the cut differs."""
    noise = np.random.default_rng(3).standard_normal((N, Z))

    def gradient(rows):
        pair = both.replaying(engine, PAIR, {"z": noise[rows]})
        batch = both.rows({"x": x[rows]})
        return both.gradients(*fitted(both, engine, batch, pair), batch)[0]

    full = gradient(np.arange(N))
    parts = [gradient(rows) for rows in np.split(np.arange(N), 3)]
    for name, value in full.items():
        np.testing.assert_allclose(sum(part[name] for part in parts) / 3, value, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("particles", [1, 3])
def test_a_global_latent_is_drawn_once_for_all_rows(both, engine, x, particles):
    batch = both.rows({"x": x})
    program, state = fitted(both, engine, batch, GLOBAL, divergence=KL(particles=particles))
    draws = program.draws(state, batch, seed=0, particles=particles)
    assert {site: draw.shape for site, draw in draws.items()} == {"w": (particles, N, 1), "z": (particles, N, Z)}
    assert (draws["w"] == draws["w"][:, :1]).all()
    found = program.terms(state, batch, seed=0, particles=particles)
    prior = -0.5 * draws["w"][..., 0] ** 2 - 0.5 * np.log(2 * np.pi)
    np.testing.assert_allclose(found.log_prior["w"] * N, prior, rtol=1e-10)
    assert found.elbo().shape == (particles, N)
    _, info = both.gradients(program, state, batch)
    assert np.isfinite(info["objective"])


def test_nested_plates_keep_rows_apart(both, engine, x):
    """A plate of features inside the data plate, with particles: the terms are those of the event-shaped story."""

    def cells(ppl, batch, nets):
        decoder = ppl.module("decoder", nets["decoder"])
        with ppl.plate("data", batch.data_size, subsample=batch.index, dim=-2), ppl.mask(batch.real[:, None]):
            with ppl.plate("dims", Z, dim=-1):
                z = ppl.sample("z", ppl.dist.Normal(ppl.zeros(()), 1.0))
            with ppl.plate("features", D, dim=-1):
                ppl.sample("x", ppl.dist.Normal(decoder(z), 0.7), obs=batch.x)

    def cells_guide(ppl, batch, nets):
        found = ppl.module("encoder", nets["encoder"])(batch.x)
        data = ppl.plate("data", batch.data_size, subsample=batch.index, dim=-2)
        with data, ppl.mask(batch.real[:, None]), ppl.plate("dims", Z, dim=-1):
            ppl.sample("z", ppl.dist.Normal(found[..., :Z], ppl.exp(found[..., Z:])))

    batch = both.rows({"x": x}, filler=1)
    plain, state = fitted(both, engine, batch)
    nested, other = fitted(both, engine, batch, Pair(model=cells, guide=cells_guide, networks=NETS))
    for particles in (1, 3):
        ours, theirs = (
            program.terms(s, batch, seed=0, particles=particles) for program, s in ((plain, state), (nested, other))
        )
        for table in ("log_likelihood", "log_prior", "log_posterior"):
            for site, value in getattr(ours, table).items():
                np.testing.assert_allclose(getattr(theirs, table)[site], value, rtol=1e-10)
        np.testing.assert_allclose(theirs.elbo(), ours.elbo(), rtol=1e-10)
        assert nested.draws(other, batch, seed=0, particles=particles)["z"].shape == (particles, N + 1, Z)
    weights = [
        program.log_weights(s, batch, seed=0, particles=5, rows=30) for program, s in ((plain, state), (nested, other))
    ]
    np.testing.assert_allclose(*weights, rtol=1e-10)


# Stock SVI: plain Pyro and NumPyro programs of the same factor model.


def pyro_model(x):
    with pyro.plate("data", N, subsample_size=len(x)):
        z = pyro.sample("z", pyro.distributions.Normal(torch.zeros(Z).double(), 1.0).to_event(1))
        loading = pyro.param("loading", torch.linspace(-1, 1, D * Z).double().view(Z, D))
        pyro.sample("x", pyro.distributions.Normal(z @ loading, 0.7).to_event(1), obs=x)


def pyro_guide(x):
    with pyro.plate("data", N, subsample_size=len(x)):
        scale = pyro.param("scale", torch.tensor(0.4).double(), constraint=pyro.distributions.constraints.positive)
        pyro.sample("z", pyro.distributions.Normal(0.3 * x[:, :Z], scale).to_event(1))


def numpyro_model(x):
    with numpyro.plate("data", N, subsample_size=len(x)):
        z = numpyro.sample("z", numpyro.distributions.Normal(jnp.zeros(Z), 1.0).to_event(1))
        loading = numpyro.param("loading", jnp.linspace(-1, 1, D * Z).reshape(Z, D))
        numpyro.sample("x", numpyro.distributions.Normal(z @ loading, 0.7).to_event(1), obs=x)


def numpyro_guide(x):
    with numpyro.plate("data", N, subsample_size=len(x)):
        scale = numpyro.param("scale", 0.4, constraint=numpyro.distributions.constraints.positive)
        numpyro.sample("z", numpyro.distributions.Normal(0.3 * x[:, :Z], scale).to_event(1))


@pytest.mark.parametrize("rows", [N, 4])
def test_drop_in_for_stock_pyro_svi(x, rows):
    from pyro.infer import SVI, TraceMeanField_ELBO

    data, losses, parameters = torch.as_tensor(x[:rows]), [], []
    for loss in (KL().on("pyro"), TraceMeanField_ELBO()):
        with torch.random.fork_rng(), pyro.get_param_store().scope():
            torch.manual_seed(0)
            svi = SVI(pyro_model, pyro_guide, pyro.optim.Adam({"lr": 0.01}), loss)
            losses.append([svi.evaluate_loss(data), *(svi.step(data) for _ in range(5))])
            parameters.append({name: value.detach().numpy() for name, value in pyro.get_param_store().items()})
    np.testing.assert_allclose(*losses, rtol=1e-10)
    for name, value in parameters[0].items():
        np.testing.assert_allclose(value, parameters[1][name], rtol=1e-6)


@pytest.mark.parametrize("rows", [N, 4])
def test_drop_in_for_stock_numpyro_svi(x, rows):
    from numpyro.infer import SVI, TraceMeanField_ELBO

    losses, parameters = [], []
    for loss in (KL().on("numpyro"), TraceMeanField_ELBO()):
        svi = SVI(numpyro_model, numpyro_guide, numpyro.optim.Adam(0.01), loss)
        result = svi.run(jax.random.key(0), 5, jnp.asarray(x[:rows]), progress_bar=False)
        losses.append(result.losses)
        parameters.append(result.params)
    np.testing.assert_allclose(*losses, rtol=1e-10)
    for name, value in parameters[0].items():
        np.testing.assert_allclose(value, parameters[1][name], rtol=1e-6)


def test_a_loss_names_a_plate_that_is_not_there(x):
    loss = KL().on("pyro", plate="sentences")
    with pyro.get_param_store().scope(), pytest.raises(BadInput, match="'sentences'"):
        loss.loss(pyro_model, pyro_guide, torch.as_tensor(x))
    other = KL().on("numpyro", plate="sentences")
    with pytest.raises(BadInput, match="'sentences'"):
        other.loss(jax.random.key(0), {}, numpyro_model, numpyro_guide, jnp.asarray(x))


def test_the_weight_of_a_drop_in_loss_is_its_own(x):
    """Annealing a stock SVI: the slope is the KL of the whole data."""
    values = []
    for weight in (0.0, 0.5, 1.0):
        loss = load("numpyro").Loss(KL().objective(), weight=weight)
        values.append(float(loss.loss(jax.random.key(0), {}, numpyro_model, numpyro_guide, jnp.asarray(x[:4]))))
    loc, scale = 0.3 * x[:4, :Z], 0.4
    kl = 0.5 * (loc**2 + scale**2 - 2 * np.log(scale) - 1).sum() * N / 4
    assert values[2] - values[0] == pytest.approx(kl, rel=1e-10)
    assert values[1] == pytest.approx((values[0] + values[2]) / 2, rel=1e-10)
