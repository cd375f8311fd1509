"""For the same seed the engines judge at the same latents; what hangs on another latent's draw is no q(z | x)."""

from __future__ import annotations

import numpy as np
import pytest

from guidebook.guides import Pair
from guidebook.models import MLP

pytestmark = pytest.mark.usefixtures("_float64")
D, Z, B = 3, 2, 4


def chain(ppl, batch, nets):
    decoder = ppl.module("decoder", nets["decoder"])
    with ppl.plate("data", batch.data_size, subsample=batch.index), ppl.mask(batch.real):
        top = ppl.sample("top", ppl.dist.Normal(ppl.zeros((Z,)), 1.0).to_event(1))
        z = ppl.sample("z", ppl.dist.Normal(ppl.tanh(top), 0.5).to_event(1))
        ppl.sample("x", ppl.dist.Normal(decoder(z), 0.7).to_event(1), obs=batch.x)


def chain_guide(ppl, batch, nets):
    encoder, below = ppl.module("encoder", nets["encoder"]), ppl.module("below", nets["below"])
    with ppl.plate("data", batch.data_size, subsample=batch.index), ppl.mask(batch.real):
        top = ppl.sample("top", ppl.dist.Normal(encoder(batch.x), 0.8).to_event(1))
        ppl.sample("z", ppl.dist.Normal(below(top), 0.4).to_event(1))


CHAIN = Pair(
    model=chain,
    guide=chain_guide,
    networks={
        "decoder": MLP(inputs=Z, outputs=D, hidden=()),
        "encoder": MLP(inputs=D, outputs=Z, hidden=()),
        "below": MLP(inputs=Z, outputs=Z, hidden=()),
    },
)


@pytest.fixture
def fitted(both):
    batch = both.rows({"x": np.random.default_rng(0).normal(size=(B, D))}, filler=1)
    programs = [both.program(engine, CHAIN, data_size=B) for engine in both.engines]
    return batch, [(program, program.init(batch)) for program in programs]


@pytest.mark.parametrize("particles", [1, 3])
def test_both_engines_judge_at_the_same_latents(fitted, particles):
    batch, found = fitted
    ours, theirs = (p.draws(state, batch, seed=7, particles=particles) for p, state in found)
    for site in ("top", "z"):
        assert ours[site].shape == (particles, B + 1, Z)
        np.testing.assert_allclose(ours[site], theirs[site], rtol=1e-12)
    elbos = [p.terms(state, batch, seed=7, particles=particles).elbo() for p, state in found]
    np.testing.assert_allclose(*elbos, rtol=1e-12)
    weights = [p.log_weights(state, batch, seed=7, particles=particles, rows=B + 1) for p, state in found]
    np.testing.assert_allclose(*weights, rtol=1e-12)
    np.testing.assert_allclose(
        weights[0].reshape(elbos[0].shape),
        found[0][0].terms(found[0][1], batch, seed=7, particles=particles).log_weight(),
        rtol=1e-12,
    )


def test_other_seeds_and_sites_have_other_noise_and_more_particles_keep_the_first(fitted):
    batch, found = fitted
    for program, state in found:
        draws = program.draws(state, batch, seed=7, particles=2)
        more = program.draws(state, batch, seed=7, particles=5)
        other = program.draws(state, batch, seed=8, particles=2)
        noise = (draws["top"] - program.posterior(state, batch)["top"].loc) / 0.8
        np.testing.assert_allclose(draws["z"], more["z"][:2])
        assert np.abs(draws["top"] - other["top"]).min() > 1e-6
        assert np.abs(noise - (draws["z"] - below(program, state, draws["top"])) / 0.4).min() > 1e-6


def below(program, state, top):
    weights = program.weights(state)
    return top @ weights["below.weight_0"].T + weights["below.bias_0"]


def test_a_latent_below_another_has_no_posterior_of_its_own(fitted):
    batch, found = fitted
    for program, state in found:
        assert set(program.posterior(state, batch)) == {"top"}
