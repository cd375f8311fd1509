"""The KL divergence as a function of the two traces: weights, free bits, particles, accounting."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from guidebook.engines.terms import Terms
from guidebook.inference.divergences import KL, FreeBits

S, B, D = 3, 4, 5
kls = arrays(np.float64, (B, D), elements=st.floats(0, 20))
logs = arrays(np.float64, (S, B), elements=st.floats(-50, 5))


def terms(kl, log_likelihood, *, prior=None, posterior=None):
    zeros = np.zeros((S, B))
    prior, posterior = (zeros if value is None else value for value in (prior, posterior))
    return Terms({"x": log_likelihood}, {"z": prior}, {"z": posterior}, {} if kl is None else {"z": kl}, np.ones(B))


@given(kls, logs)
def test_weight_one_is_the_negative_elbo_and_weight_zero_the_reconstruction(kl, log_likelihood):
    found = terms(kl, log_likelihood)
    np.testing.assert_allclose(KL().loss(found, 1.0), -found.elbo().mean(0), atol=1e-9)
    np.testing.assert_allclose(KL().loss(found, 0.0), -log_likelihood.mean(0), atol=1e-9)


@given(kls, logs, st.floats(0, 5))
def test_the_loss_is_linear_in_the_weight(kl, log_likelihood, weight):
    found, loss = terms(kl, log_likelihood), KL(free_bits=FreeBits(nats=3.0)).loss
    mixed = loss(found, 0.0) + weight * (loss(found, 1.0) - loss(found, 0.0))
    np.testing.assert_allclose(loss(found, weight), mixed, rtol=1e-9, atol=1e-9)


@given(logs, logs, logs)
def test_without_an_analytic_kl_the_draws_stand_in(log_likelihood, prior, posterior):
    found = terms(None, log_likelihood, prior=prior, posterior=posterior)
    np.testing.assert_allclose(KL().loss(found, 0.3), (-log_likelihood + 0.3 * (posterior - prior)).mean(0), atol=1e-9)
    assert found.sampled == ("z",)


@given(kls, logs, st.floats(0.1, 30))
def test_free_bits_floor_each_dimension_or_the_whole_sentence(kl, log_likelihood, nats):
    found, none = terms(kl, log_likelihood), -log_likelihood.mean(0)
    by_dimension = KL(free_bits=FreeBits(nats=nats, per="dimension")).loss(found, 1.0) - none
    by_sentence = KL(free_bits=FreeBits(nats=nats, per="sentence")).loss(found, 1.0) - none
    np.testing.assert_allclose(by_dimension, np.maximum(kl, nats / D).sum(-1), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(by_sentence, np.maximum(kl.sum(-1), nats), rtol=1e-9, atol=1e-9)
    assert (by_dimension >= by_sentence - 1e-9).all()
    assert (by_sentence >= kl.sum(-1) - 1e-9).all()


@given(kls, logs, st.integers(0, B - 1), st.sampled_from(["dimension", "sentence"]))
def test_rows_do_not_touch_each_other(kl, log_likelihood, row, per):
    """Free bits per sentence, not per batch: another row's KL changes nothing."""
    loss = KL(free_bits=FreeBits(nats=4.0, per=per)).loss
    other = kl.copy()
    other[row] += 7.0
    same = np.arange(B) != row
    before, after = (loss(terms(value, log_likelihood), 1.0) for value in (kl, other))
    np.testing.assert_array_equal(before[same], after[same])


@given(kls, logs, st.floats(0.1, 30))
def test_free_bits_of_a_batch_floor_the_mean_of_each_dimension_over_real_rows(kl, log_likelihood, nats):
    rows = np.array([1.0, 0.0, 1.0, 1.0])
    found = terms(kl, log_likelihood)._replace(weight=rows)
    floored = KL(free_bits=FreeBits(nats=nats, per="batch")).loss(found, 1.0) + log_likelihood.mean(0)
    mean = kl[rows > 0].mean(0)
    assert (floored * rows).sum() == pytest.approx(3 * np.maximum(mean, nats / D).sum(), rel=1e-9)
    spent = mean > nats / D  # those have their own KL in every row
    np.testing.assert_allclose(floored, kl[:, spent].sum(-1) + nats / D * (~spent).sum(), rtol=1e-9, atol=1e-9)


def test_what_is_reported_is_the_plain_kl_whatever_the_free_bits():
    found = terms(np.full((B, D), 0.01), np.zeros((S, B)))
    sums = found.sums(KL(free_bits=FreeBits(nats=8.0)).loss(found, 1.0))
    assert sums["kl/z"] == pytest.approx(B * D * 0.01)
    assert sums["objective"] == pytest.approx(B * 8.0)


def test_filler_rows_count_for_nothing():
    found = terms(np.ones((B, D)), -np.ones((S, B)))._replace(weight=np.array([1.0, 1.0, 1.0, 0.0]))
    sums = found.sums(KL().loss(found, 1.0) * found.weight)
    assert (sums["rows"], sums["kl/z"], sums["objective"]) == (3, 3 * D, 3 * (D + 1))


@pytest.mark.parametrize("per", ["dimension", "sentence"])
@pytest.mark.parametrize("engine", ["pyro", "numpyro"])
def test_below_the_floor_there_is_no_gradient(engine, per):
    kl = np.array([[0.1, 0.1, 0.1], [5.0, 6.0, 7.0]], np.float32)
    loss = KL(free_bits=FreeBits(nats=3.0, per=per)).loss

    def total(value, zeros):
        return loss(Terms({"x": zeros}, {"z": zeros}, {"z": zeros}, {"z": value}, zeros[0] + 1), 1.0).sum()

    if engine == "pyro":
        torch = pytest.importorskip("torch")
        value = torch.tensor(kl, requires_grad=True)
        total(value, torch.zeros(1, 2)).backward()
        gradient = value.grad.numpy()
    else:
        jax = pytest.importorskip("jax")
        gradient = np.asarray(jax.grad(total)(jax.numpy.asarray(kl), jax.numpy.zeros((1, 2))))
    np.testing.assert_array_equal(gradient, [[0, 0, 0], [1, 1, 1]])


def test_a_pair_without_latents_has_its_likelihood_as_loss():
    found = Terms({"x": np.full((1, B), -2.0)}, {}, {}, {}, np.ones(B))
    np.testing.assert_array_equal(KL().loss(found, 0.5), np.full(B, 2.0))
