"""Masks on one side of a pair: both engines read them alike.

z_n ~ N(0, I);   x_n ~ N(A z_n, r)
"""

from __future__ import annotations

import numpy as np
import pytest

from guidebook.guides import Pair
from guidebook.models import MLP

pytestmark = pytest.mark.usefixtures("_float64")
D, Z, N = 3, 2, 12
NETS = {"decoder": MLP(inputs=Z, outputs=D, hidden=()), "encoder": MLP(inputs=D, outputs=2 * Z, hidden=(4,))}


@pytest.mark.parametrize("scalar", [False, True])
@pytest.mark.parametrize("side", ["model", "guide"])
def test_a_mask_on_one_side_is_that_sides_own(both, side, scalar):
    """log p has the model's mask, log q the guide's, an analytic KL both."""

    def masked(ppl, batch, here):
        return ppl.mask(batch.seen if here else batch.real)

    def normal(ppl, loc, scale):
        return ppl.dist.Normal(loc[..., 0], scale[..., 0]) if scalar else ppl.dist.Normal(loc, scale).to_event(1)

    def story(ppl, batch, nets, here=side == "model"):
        decoder = ppl.module("decoder", nets["decoder"])
        with ppl.plate("data", batch.data_size, subsample=batch.index):
            with masked(ppl, batch, here):
                z = ppl.sample("z", normal(ppl, ppl.zeros((Z,)), ppl.zeros((Z,)) + 1.0))
            loc = decoder(z[..., None] + ppl.zeros((Z,)) if scalar else z)
            ppl.sample("x", ppl.dist.Normal(loc, 0.7).to_event(1), obs=batch.x)

    def story_guide(ppl, batch, nets, here=side == "guide"):
        found = ppl.module("encoder", nets["encoder"])(batch.x)
        with ppl.plate("data", batch.data_size, subsample=batch.index), masked(ppl, batch, here):
            ppl.sample("z", normal(ppl, found[..., :Z], ppl.exp(found[..., Z:])))

    seen = np.arange(N) % 3 > 0
    x = np.random.default_rng(0).normal(size=(N, D))
    pair = Pair(model=story, guide=story_guide, networks=NETS)
    batch = both.rows({"x": x, "seen": seen})
    plain = both.rows({"x": x, "seen": seen | True})
    gradients = []
    for engine in both.engines:
        program = both.program(engine, pair, data_size=N)
        state = program.init(batch)
        ours, whole = (program.terms(state, rows, seed=0, particles=2) for rows in (batch, plain))
        hidden = {"log_prior": side == "model", "log_posterior": side == "guide"}
        for table, here in hidden.items():
            expected = getattr(whole, table)["z"] * (seen if here else 1.0)
            np.testing.assert_allclose(getattr(ours, table)["z"], expected, rtol=1e-10, err_msg=f"{engine} {table}")
        np.testing.assert_allclose(ours.kl["z"], whole.kl["z"] * seen[:, None], rtol=1e-10, err_msg=engine)
        noise = {"z": np.random.default_rng(4).normal(size=N if scalar else (N, Z))}
        replayed = both.program(engine, both.replaying(engine, pair, noise), data_size=N)
        gradients.append(both.gradients(replayed, replayed.init(batch), batch)[0])
    for name, value in gradients[0].items():
        np.testing.assert_allclose(gradients[1][name], value, rtol=1e-8, atol=1e-12, err_msg=name)
