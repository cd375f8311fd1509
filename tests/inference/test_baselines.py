"""Baselines of the score function on bits whose gradient is a sum over their values.

log w(z) = c + a·z + z_0 z_1 + weight (log p(z) − log q(z)), c a number of each datum: most of the variance without one.
"""

from __future__ import annotations

import itertools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy.special import expit

from guidebook.engines.terms import Terms
from guidebook.guides import PAIRS
from guidebook.inference import KL, fit

OFFSETS = np.array([-9.0, -5.0, -1.0])
SLOPES, LOGITS, WEIGHT = np.array([0.8, -0.5]), np.array([0.6, -1.1]), 0.7
GROUPS, PARTICLES = 4000, 4
ROWS = np.repeat(OFFSETS, GROUPS)
BASELINES = ("none", "running", "others", "optimal")


def log_q_of(xp, z, logits):
    """(…, D) to (…,)."""
    return (z * logits - xp.log(1 + xp.exp(logits))).sum(-1)


def terms_of(xp, array, z, logits, offsets):
    """z (S, B, D) and logits (B, D)."""
    likelihood = offsets + z @ array(SLOPES[: z.shape[-1]]) + (z[..., 0] * z[..., -1])
    prior = log_q_of(xp, z, 0.0 * logits)
    score = log_q_of(xp, z, logits)
    norm = ((z - 1 / (1 + xp.exp(-logits))) ** 2).sum(-1)
    return Terms(
        {"x": likelihood},
        {"z": prior},
        {"z": score},
        {},
        0.0 * offsets + 1.0,
        score={"z": score},
        score_norm={"z": norm},
    )


def draws(particles, rows, logits=LOGITS):
    return (np.random.default_rng(5).random((particles, rows, len(logits))) < expit(logits)).astype(float)


def gradients(library, baseline, z, logits=LOGITS, offsets=ROWS):
    """∂ loss / ∂ logits by the guide's side, (B, D)."""
    divergence = KL(estimator="score", baseline=baseline, particles=len(z))
    # the limit of the running mean, from other draws than these
    carried = {"weight": WEIGHT, "baseline": float(np.mean([-exact_value(c) for c in OFFSETS]))}
    weight = carried if baseline == "running" else WEIGHT
    every = np.repeat(logits[None], z.shape[1], 0)
    if library == "torch":
        point = torch.tensor(every, requires_grad=True)
        found = divergence.loss(terms_of(torch, torch.tensor, torch.tensor(z), point, torch.tensor(offsets)), weight)
        return torch.autograd.grad(found.guide.sum(), point)[0].numpy()
    with jax.enable_x64(True):

        def guide(point):
            terms = terms_of(jnp, jnp.asarray, jnp.asarray(z), point, jnp.asarray(offsets))
            return divergence.loss(terms, weight).guide.sum()

        return np.asarray(jax.grad(guide)(jnp.asarray(every)))


def exact_value(offset, logits=LOGITS):
    """−E_q log w over all values."""
    total = 0.0
    for z in itertools.product([0.0, 1.0], repeat=len(logits)):
        bits = np.array(z)
        log_q = log_q_of(np, bits, logits)
        log_w = offset + bits @ SLOPES + bits[0] * bits[-1] + WEIGHT * (log_q_of(np, bits, 0 * logits) - log_q)
        total -= np.exp(log_q) * log_w
    return total


def exact_gradient(offset):
    step = 1e-5
    moves = step * np.eye(len(LOGITS))
    return np.array([exact_value(offset, LOGITS + m) - exact_value(offset, LOGITS - m) for m in moves]) / (2 * step)


@pytest.mark.parametrize("library", ["torch", "jax"])
@pytest.mark.parametrize("baseline", BASELINES)
def test_none_of_them_adds_a_bias(library, baseline):
    found = gradients(library, baseline, draws(PARTICLES, len(ROWS))).reshape(len(OFFSETS), GROUPS, -1)
    wanted = np.array([exact_gradient(offset) for offset in OFFSETS])
    errors = found.std(1, ddof=1) / GROUPS**0.5
    assert np.abs((found.mean(1) - wanted) / errors).max() < 4.5  # six means: false alarm below 1e-4
    assert errors.max() < 0.2


@pytest.mark.parametrize("library", ["torch", "jax"])
def test_their_variances_are_in_order(library):
    z = draws(PARTICLES, len(ROWS))
    none, running, others, optimal = (
        gradients(library, baseline, z).reshape(len(OFFSETS), GROUPS, -1).var(1).sum() for baseline in BASELINES
    )
    assert none > 1.5 * running
    assert running > 1.5 * max(others, optimal)


@pytest.mark.parametrize("library", ["torch", "jax"])
def test_the_optimal_constant_leaves_one_bit_without_variance(library):
    """b = E[f s²] / E[s²] is f_0 p + f_1 (1 − p), and (f − b)(z − p) the same for both values of z."""
    logits, offsets = np.array([1.8]), np.full(300, -4.0)
    z = draws(256, 300, logits)
    others, optimal = (gradients(library, one, z, logits, offsets).var() for one in ("others", "optimal"))
    assert optimal < 0.1 * others


def test_a_baseline_does_not_see_its_own_particle():
    z = draws(PARTICLES, 2)
    moved = z.copy()
    moved[1] = 1 - moved[1]
    for name in ("others", "optimal"):
        divergence = KL(estimator="score", baseline=name, particles=PARTICLES)
        found = []
        for one in (z, moved):
            terms = terms_of(np, np.asarray, one, np.repeat(LOGITS[None], 2, 0), np.array([-1.0, -2.0]))
            found.append(divergence._of_others(terms, terms.log_weight(WEIGHT)))
        np.testing.assert_allclose(found[0][1], found[1][1], rtol=1e-12)
        assert (found[0][[0, 2, 3]] != found[1][[0, 2, 3]]).all()


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"baseline": "running"}, "'running' is of estimator = \"score\", not of 'analytic'"),
        ({"estimator": "score", "decay": 0.5}, "decay is of the baseline \"running\", not of 'others'"),
        ({"estimator": "score", "baseline": "optimal"}, "particles = 2 would be right"),
    ],
)
def test_a_baseline_without_a_use_is_refused(fields, said):
    with pytest.raises(ValidationError, match=said):
        KL(**fields)


def test_the_running_mean_is_carried_by_the_loop(engine, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["guidebook.inference.fit"], "LOG_EVERY", 1)
    x = (np.random.default_rng(0).random((60, 5)) < 0.3).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=x)
    settings = [
        "model.prior={kind='bernoulli', dim=3}", "guide.posterior.kind='bernoulli'", f"data.file='{tmp_path}/x.npz'",
        "model.decoder.hidden=[]", "guide.features=3", "fit.batch_size=10", "fit.max_steps=8", "data.valid=0",
        "divergence={estimator='score', baseline='running', decay=0.8, weight=0.5}",
    ]  # fmt: skip
    run = fit(PAIRS["vae"], *settings, engine=engine, out=tmp_path / "run", progress=False)
    baseline: float = 0.0
    for _, line in run.history("train").iterrows():
        baseline = 0.8 * baseline - 0.2 * float(line["objective"])
        assert float(line["baseline"]) == pytest.approx(baseline, rel=1e-9)
    assert baseline < -1.0
