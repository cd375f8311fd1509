"""Running moments under everything that sends a batch through the guide more than once: they move once a batch.

mean ← mean + momentum (mean m − mean), and the variance alike, m = (W h)[: Z] of x itself, before any refinement.
"""

from __future__ import annotations

import numpy as np
import pytest

from guidebook.engines.protocol import Refinement
from guidebook.guides import PAIRS, LSTMEncoder, Pair, SentenceGuide
from guidebook.guides.posteriors import BatchNormalisedNormal
from guidebook.inference import IWAE, KL, SVGD, ReweightedWakeSleep
from guidebook.models import MLP, LSTMDecoder, Network, SentenceModel, StandardNormal

pytestmark = pytest.mark.usefixtures("_float64")
D, Z, B, H, MOMENTUM = 3, 2, 5, 3, 0.3
FIRST, SECOND, VIEW = np.random.default_rng(0).normal(size=(3, B, D))
NETWORKS = {
    "decoder": MLP(inputs=Z, outputs=D, hidden=()),
    "encoder": MLP(inputs=D, outputs=H, hidden=()),
    "posterior": Network(BatchNormalisedNormal(initial_scale=0.5, momentum=MOMENTUM), {"features": H, "latent": Z}),
}


def linear(ppl, batch, nets):
    decoder = ppl.module("decoder", nets["decoder"])
    with ppl.plate("data", batch.data_size, subsample=batch.index), ppl.mask(batch.real):
        z = ppl.sample("z", ppl.dist.Normal(ppl.zeros((Z,)), 1.0).to_event(1))
        ppl.sample("x", ppl.dist.Normal(decoder(z), 0.7).to_event(1), obs=batch.x)


def guide(ppl, batch, nets):
    encoder, posterior = (ppl.module(name, nets[name]) for name in ("encoder", "posterior"))
    with ppl.plate("data", batch.data_size, subsample=batch.index), ppl.mask(batch.real):
        ppl.sample("z", posterior(encoder(batch.x)))


PAIR = Pair(model=linear, guide=guide, networks=NETWORKS)
SETTINGS = {
    "plainly": {},
    "several particles": {"divergence": IWAE(particles=3)},
    "refined through": {"refinement": Refinement(2, 0.5, 0.5, 5.0, True)},
    "refined and detached": {"refinement": Refinement(2, 0.5, 0.5, 5.0, False)},
    "refined for two losses": {"refinement": Refinement(2, 0.5, 0.5, 5.0, False), "divergence": KL(estimator="stl")},
    "beside another view": {"consistency": 0.5},
    "transported": {"divergence": SVGD(particles=3)},
}


@pytest.mark.parametrize("batches", [1, 2])
@pytest.mark.parametrize("settings", SETTINGS)
def test_each_batch_moves_them_once(both, engine, settings, batches):
    """Two steps without an optimiser's; the moments of the batches of one step are averaged."""
    views = {"augmented/x": VIEW} if "consistency" in SETTINGS[settings] else {}
    data = [both.rows({"x": x} | views) for x in (FIRST, SECOND)][:batches]
    program = both.program(engine, PAIR, data_size=10, **SETTINGS[settings])
    state = program.init(data[0])
    start = program.weights(state)
    features = [x @ start["encoder.weight_0"].T + start["encoder.bias_0"] for x in (FIRST, SECOND)][:batches]
    m = np.stack(features) @ start["posterior.weight"][:Z].T
    mean, variance = np.zeros(Z), np.ones(Z)
    for step in range(2):
        state, _ = program.step(state, data, both.control(step, rate=0.0))
        mean = mean + MOMENTUM * (m.mean(1).mean(0) - mean)
        variance = variance + MOMENTUM * (m.var(1).mean(0) - variance)
        found = program.weights(state)
        np.testing.assert_allclose(found["posterior.mean"], mean, rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(found["posterior.variance"], variance, rtol=1e-6)


def test_a_dream_does_not_move_them(both, engine):
    """The sleep phase sends what the model draws through the guide too."""
    cell = {"embedding": 3, "hidden": 4, "initial_scale": 0.6}
    model = SentenceModel(prior=StandardNormal(dim=Z), decoder=LSTMDecoder(dropout=0.0, **cell))
    posterior = BatchNormalisedNormal(initial_scale=0.5, momentum=MOMENTUM)
    pair, batch = PAIRS["sentence_vae"], both.sentences([4, 5], [5])
    networks = pair.realisable(model, SentenceGuide(posterior=posterior, encoder=LSTMEncoder(**cell)), 7)
    found = []
    for divergence in (KL(), ReweightedWakeSleep(particles=2, sleep=0.5)):
        program = both.program(engine, pair, networks, data_size=2, divergence=divergence)
        state, _ = program.step(program.init(batch), [batch], both.control(rate=0.0))
        found.append(program.weights(state))
    assert np.abs(found[0]["posterior.mean"]).max() > 1e-3
    for name in ("posterior.mean", "posterior.variance"):
        np.testing.assert_allclose(found[1][name], found[0][name], rtol=1e-9)
