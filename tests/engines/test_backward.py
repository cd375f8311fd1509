"""The network of a smoothing guide reads the steps inside its mask, from the last to the first, and no other."""

from __future__ import annotations

import jax
import numpy as np
import pytest
import torch

from guidebook import engines
from guidebook.engines.filtering import Filtering
from guidebook.engines.protocol import Settings
from guidebook.guides import PAIRS
from guidebook.inference.divergences import KL

STEPS, WIDTH = 7, 3
MASK = np.array([[1, 1, 0, 0, 1, 1, 0], [0, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0, 0]], bool)


def batch(rng, rows):
    return {
        "x": rng.normal(size=(rows, STEPS, WIDTH)),
        "mask": np.ones((rows, STEPS), bool),
        "lengths": np.full(rows, STEPS),
        "weight": np.ones(rows),
        "index": np.arange(rows),
    }


@pytest.fixture(params=["lstm", "gru"])
def vrnn(request):
    pair = PAIRS["vrnn"]
    model = pair.model_spec.model_validate({"likelihood": {"kind": "gaussian"}, "cell": {"kind": "gru", "hidden": 4}})
    backward = {"kind": request.param, "hidden": 5}
    guide = pair.guide_spec.model_validate({"proposal": "smoothing", "backward": backward})
    return pair, pair.realisable(model, guide, WIDTH)


@pytest.mark.parametrize("engine", ["pyro", "numpyro"])
def test_hidden_steps_are_not_read(vrnn, engine):
    pair, networks = vrnn
    with jax.enable_x64(True):
        settings = Settings(data_size=3, objective=KL().objective(), dtype="float64")
        program = engines.load(engine).Program(pair, networks, settings)
        seen = batch(np.random.default_rng(0), 3)
        state = program.init(seen)
        other = {**seen, "x": np.where(MASK[..., None], seen["x"], 9.0)}
        one, two = (
            program.filter(state, each, seed=0, particles=4, filtering=Filtering(), observed=MASK)
            for each in (seen, other)
        )
        np.testing.assert_array_equal(one.log_evidence, two.log_evidence)
        np.testing.assert_array_equal(one.latents, two.latents)


@pytest.mark.parametrize("engine", ["pyro", "numpyro"])
def test_steps_with_a_gap_are_read_like_the_same_steps_without(vrnn, engine):
    pair, networks = vrnn
    rng = np.random.default_rng(1)
    with jax.enable_x64(True):
        settings = Settings(data_size=3, objective=KL().objective(), dtype="float64")
        program = engines.load(engine).Program(pair, networks, settings)
        state = program.init(batch(rng, 3))
        features = rng.normal(size=(STEPS, 3, 32))
        pyro = engine == "pyro"
        net = (program.networks if pyro else program.modules(state.parameters))["backward"]

        def read(e, mask):
            return net(torch.as_tensor(e), torch.as_tensor(mask)).detach().numpy() if pyro else np.asarray(net(e, mask))

        found = read(features, MASK.T)
        for row, mask in enumerate(MASK):
            close_up = read(features[mask][:, row : row + 1], np.ones((mask.sum(), 1), bool))
            np.testing.assert_allclose(found[mask, row], close_up[:, 0], rtol=1e-10)
