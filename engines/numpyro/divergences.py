"""Closed forms of KL(q‖p) that NumPyro lacks, registered where stock ELBOs find them.

Between families of one dimension, of Gaussians with any covariance from diagonal ones, and between discrete families.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array
from jax.scipy.stats import norm
from numpyro.distributions import kl_divergence

from .discrete import OneHotCategorical

_LOG_2_PI = math.log(2 * math.pi)


@kl_divergence.register(dist.Laplace, dist.Laplace)
def _laplace_laplace(q: Any, p: Any) -> Array:
    distance = jnp.abs(q.loc - p.loc)
    return jnp.log(p.scale / q.scale) - 1 + (q.scale * jnp.exp(-distance / q.scale) + distance) / p.scale


@kl_divergence.register(dist.Laplace, dist.Normal)
def _laplace_normal(q: Any, p: Any) -> Array:
    return _cross_entropy(p, q.loc, 2 * q.scale**2) - jnp.log(2 * q.scale) - 1


@kl_divergence.register(dist.Normal, dist.Laplace)
def _normal_laplace(q: Any, p: Any) -> Array:
    """E|x − m| is that of a folded normal."""
    t = (q.loc - p.loc) / q.scale
    distance = q.scale * (2 * norm.pdf(t) + t * (1 - 2 * norm.cdf(-t)))
    return distance / p.scale + jnp.log(2 * p.scale) - jnp.log(q.scale) - 0.5 * (_LOG_2_PI + 1)


@kl_divergence.register(dist.Logistic, dist.Normal)
def _logistic_normal(q: Any, p: Any) -> Array:
    """The entropy of a logistic is log s + 2, its variance (π s)² / 3."""
    return _cross_entropy(p, q.loc, (math.pi * q.scale) ** 2 / 3) - jnp.log(q.scale) - 2


@kl_divergence.register(dist.Uniform, dist.Uniform)
def _uniform_uniform(q: Any, p: Any) -> Array:
    inside = (p.low <= q.low) & (q.high <= p.high)
    return jnp.where(inside, jnp.log((p.high - p.low) / (q.high - q.low)), jnp.inf)


@kl_divergence.register(dist.Uniform, dist.Normal)
def _uniform_normal(q: Any, p: Any) -> Array:
    width = q.high - q.low
    return _cross_entropy(p, (q.low + q.high) / 2, width**2 / 12) - jnp.log(width)


@kl_divergence.register(dist.BernoulliLogits, dist.BernoulliLogits)
def _bernoulli_bernoulli(q: Any, p: Any) -> Array:
    return q.probs * (q.logits - p.logits) + jax.nn.softplus(p.logits) - jax.nn.softplus(q.logits)


@kl_divergence.register(OneHotCategorical, OneHotCategorical)
def _one_hot_one_hot(q: Any, p: Any) -> Array:
    log_q, log_p = jax.nn.log_softmax(q.logits), jax.nn.log_softmax(p.logits)
    return (jnp.exp(log_q) * (log_q - log_p)).sum(-1)


@kl_divergence.register(dist.MultivariateNormal, dist.Independent)
def _normal_diagonal(q: Any, p: Any) -> Array:
    half_log_determinant = jnp.log(jnp.diagonal(q.scale_tril, axis1=-2, axis2=-1)).sum(-1)
    return _gaussian_diagonal(q, p, half_log_determinant)


@kl_divergence.register(dist.LowRankMultivariateNormal, dist.Independent)
def _low_rank_diagonal(q: Any, p: Any) -> Array:
    """log det(F Fᵀ + D) = log det D + log det(I + Fᵀ D⁻¹ F), whose Cholesky factor q keeps."""
    capacitance = jnp.log(jnp.diagonal(q._capacitance_tril, axis1=-2, axis2=-1)).sum(-1)
    return _gaussian_diagonal(q, p, capacitance + 0.5 * jnp.log(q.cov_diag).sum(-1))


def _gaussian_diagonal(q: Any, p: Any, half: Array) -> Array:
    """half: half the log-determinant of q's covariance."""
    base: Any = p.base_dist
    while isinstance(base, dist.ExpandedDistribution):
        base = base.base_dist
    if not (isinstance(base, dist.Normal) and p.reinterpreted_batch_ndims == 1):
        raise NotImplementedError
    loc, scale = (jnp.broadcast_to(moment, p.batch_shape + p.event_shape) for moment in (p.mean, jnp.sqrt(p.variance)))
    squares = (q.variance + (q.loc - loc) ** 2) / scale**2
    return 0.5 * (squares - 1).sum(-1) + jnp.log(scale).sum(-1) - half


def _cross_entropy(p: Any, mean: Array, variance: Array) -> Array:
    """−E log N(x; loc, scale²) for any x of this mean and variance."""
    return 0.5 * _LOG_2_PI + jnp.log(p.scale) + (variance + (mean - p.loc) ** 2) / (2 * p.scale**2)
