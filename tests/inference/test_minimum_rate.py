"""A minimum rate on a factor model that the ELBO collapses: the rate, its multiplier and its resumption.

z ~ N(0, 1);   x ~ N(w z + b, S²);   q(z | x) = N(a x + c, t²), and the data have mean 0 and variance V < S². At a rate of
R nats the least distortion is V exp(−2 R) / (2 S²): its slope is above −1 everywhere, so the ELBO takes R = 0, and
u = 1 − V exp(−2 R) / S² is the price of R.
"""

from __future__ import annotations

import sys

import numpy as np
import pytest

from guidebook.engines.terms import Terms
from guidebook.guides import Pair
from guidebook.inference import KL, MinimumRate, fit
from guidebook.inference.files import read_arrays
from guidebook.models import MLP, BadInput

ROWS, BATCH, S, V, R = 1280, 64, 1.0, 0.6, 0.5
STEP_SIZE, STEPS = 0.01, 500


def data():
    x = np.random.default_rng(0).normal(size=(ROWS, 1))
    return ((x - x.mean()) / x.std() * V**0.5).astype(np.float32)


def model(ppl, batch, nets):
    decoder = ppl.module("decoder", nets["decoder"])
    with ppl.plate("data", batch.data_size, subsample=batch.index), ppl.mask(batch.real):
        z = ppl.sample("z", ppl.dist.Normal(ppl.zeros((1,)), 1.0).to_event(1))
        ppl.sample("x", ppl.dist.Normal(decoder(z), S).to_event(1), obs=batch.x)


def guide(ppl, batch, nets):
    found = ppl.module("encoder", nets["encoder"])(batch.x)
    with ppl.plate("data", batch.data_size, subsample=batch.index), ppl.mask(batch.real):
        ppl.sample("z", ppl.dist.Normal(found[..., :1], ppl.exp(found[..., 1:])).to_event(1))


NETWORKS = {"decoder": MLP(inputs=1, outputs=1, hidden=()), "encoder": MLP(inputs=1, outputs=2, hidden=())}
PAIR = Pair(model, guide, name="factor", networks=NETWORKS, data={"x": data()}, sites={"z": ("factor",)})
RATE = [f"divergence={{kind='minimum_rate', nats={R}, step_size={STEP_SIZE}, particles=8}}"]


def run(engine, out, steps, *settings, resume=False):
    chosen = [
        "data.valid=0", "data.test=0", f"fit.batch_size={BATCH}", "fit.epochs=1000", f"fit.max_steps={steps}",
        "fit.optimiser={learning_rate=0.05}",
    ]  # fmt: skip
    return fit(PAIR, *chosen, *settings, engine=engine, out=out, progress=False, resume=resume)


LOOP = sys.modules["guidebook.inference.fit"]


@pytest.fixture(scope="module", autouse=True)
def _every_step_is_logged():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LOOP, "LOG_EVERY", 1)
        yield


@pytest.fixture(scope="module")
def rated(tmp_path_factory):
    """A run at the rate, per engine, with a line for every step."""
    found = {}

    def of(engine):
        if engine not in found:
            found[engine] = run(engine, tmp_path_factory.mktemp("rated") / engine, STEPS, *RATE)
        return found[engine]

    return of


@pytest.mark.slow
def test_the_rate_is_met_where_the_elbo_collapses(rated, tmp_path, engine):
    collapsed = run(engine, tmp_path / "elbo", STEPS, "divergence.particles=8").history("valid").iloc[-1]
    assert collapsed["kl"] < 0.02
    train = rated(engine).history("train").iloc[-100:].mean()
    assert train["kl"] == pytest.approx(R, rel=0.1)
    assert train["multiplier"] == pytest.approx(1 - V * np.exp(-2 * R) / S**2, rel=0.1)
    least = 0.5 * np.log(2 * np.pi * S**2) + V * np.exp(-2 * R) / (2 * S**2)
    assert train["reconstruction"] == pytest.approx(least, rel=0.03)


def test_the_multiplier_follows_its_recursion(rated, engine):
    lines = rated(engine).history("train")
    assert list(lines.index) == list(range(1, STEPS + 1))
    u = 0.0
    for _, line in lines.iterrows():
        lagrangian = line["reconstruction"] + line["kl"] + u * (R - line["kl"])
        assert line["objective"] == pytest.approx(lagrangian, rel=1e-4)
        u = max(0.0, u + STEP_SIZE * (R - line["kl"]))
        assert line["multiplier"] == pytest.approx(u, rel=1e-9)
    assert lines["multiplier"].min() >= 0


def test_what_is_validated_does_not_hang_on_the_multiplier(rated, engine):
    for _, line in rated(engine).history("valid").iloc[::5].iterrows():
        wanted = line["reconstruction"] + max(line["kl"], R)
        assert wanted - 1e-6 < line["objective"] < wanted + 0.03  # a mean of maxima: each batch has a KL of its own


def test_stopped_and_resumed_is_as_never_stopped(rated, tmp_path, engine, monkeypatch):
    """Killed two steps after its last checkpoint."""
    out, settings = tmp_path / "run", [*RATE, "fit.checkpoint_seconds=1e-9"]
    run(engine, tmp_path / "whole", 24, *settings)
    save = LOOP.save

    def killed(folder, program, state, position, fingerprint):
        if position.step == 13:
            raise SystemExit
        if position.step <= 11:
            save(folder, program, state, position, fingerprint)

    monkeypatch.setattr(LOOP, "save", killed)
    with pytest.raises(SystemExit):
        run(engine, out, 24, *settings)
    monkeypatch.setattr(LOOP, "save", save)
    assert read_arrays(out / "state.safetensors")[1]["step"] == 11
    run(engine, out, 24, *settings, resume=True)
    for name in ("weights.safetensors", "state.safetensors"):
        (ours, about), (theirs, beside) = (read_arrays(folder / name) for folder in (out, tmp_path / "whole"))
        for key in ours:
            np.testing.assert_array_equal(ours[key], theirs[key], err_msg=key)
        assert {**about, "seconds": 0} == {**beside, "seconds": 0}
    assert about["carried"]["multiplier"] > 0


def terms(kl):
    return Terms(
        {"x": np.array([[-3.0, -2.0, -9.0]])}, {}, {"z": None}, {"z": np.array(kl)[:, None]}, np.array([1.0, 1, 0])
    )


def test_the_multiplier_never_falls_below_zero():
    divergence = MinimumRate(nats=2.0, step_size=0.5)
    assert divergence.carried() == {"multiplier": 0.0}
    found = [divergence.adapted({"multiplier": u}, {"kl/a": 6.0, "kl/b": 3.0, "rows": 3.0}) for u in (0.2, 0.75)]
    assert [one["multiplier"] for one in found] == [0.0, 0.25]


def test_at_multiplier_zero_it_is_the_elbo_and_at_weight_nothing():
    found, divergence = terms([0.5, 1.5, 7.0]), MinimumRate(nats=2.0)
    np.testing.assert_allclose(divergence.loss(found, {"weight": 0.7, "multiplier": 0.0}), KL().loss(found, 0.7))
    np.testing.assert_allclose(
        divergence.loss(found, {"weight": 0.7, "multiplier": 0.7})[:2], np.array([3.0, 2.0]) + 0.7 * 2.0
    )
    np.testing.assert_allclose(divergence.reported(found, 1.0)[:2], [3.0 + 0.5 + 1.0, 2.0 + 1.5 + 1.0])


def test_the_stock_svis_carry_nothing(engine):
    with pytest.raises(BadInput, match=r"minimum_rate carries its multiplier from step to step.*use fit"):
        MinimumRate(nats=1.0).on(engine)
