"""Mixtures of normals with diagonal covariances: their density, and draws reparameterised in all parameters, the weights too.

A draw moves with its parameters as a velocity v says that keeps ∂q + div(q v) = 0 for the density q = Σ_i w_i q_i
(Jankowiak & Karaletsos 2018): the gradient is then unbiased. In location and scale, v is that of each component,
weighted by its responsibility w_i q_i / q. In the weights, whose changes sum to zero, a component is taken apart to a
common normal r, one coordinate after the other:

    q_i − r = Σ_d ∂_d [(Φ_i − Φ_r)(z_d) Π_{e<d} q_i(z_e) Π_{e>d} r(z_e)]

so that minus the bracket over q is the velocity of coordinate d for each unit of w_i. r has the mixture's mean and the
smallest scales: then no tail of it outweighs q's. The variance grows exponentially in the squared distance of components.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax import Array
from jax.lax import stop_gradient
from jax.nn import logsumexp
from jax.scipy.special import ndtr

from .dirichlet import MASKED


def log_density(log_weight: Array, loc: Array, scale: Array, z: Array) -> Array:
    """log Σ_i w_i N(z; μ_i, diag σ_i²) (…, K) at z (…, K, p), from log w (…, M), normalised, μ and σ (…, M, p)."""

    def located(component: tuple[Array, Array]) -> Array:
        mean, deviation = (x[..., None, :] for x in component)
        return _standardised(z, mean, deviation)[1].sum(-1)

    parts = tuple(jnp.moveaxis(x, -2, 0) for x in (loc, scale))
    each = jnp.moveaxis(jax.lax.map(located, parts), 0, -1)  # (…, K, M, p) at once is too much
    return logsumexp(log_weight[..., None, :] + each, axis=-1)


def components_drawn(key: Array, log_weight: Array, shape: tuple[int, ...]) -> Array:
    """Independent draws i with probability exp(log_weight_i), of `shape` (…, K), from log_weight (…, M), normalised.

    By the inverse of the distribution function, which costs K M comparisons and one number for each draw, in place of K M
    numbers. Probabilities below the resolution of the type, 1e-7, are rounded.
    """
    steps = jnp.exp(log_weight).cumsum(-1)
    waiting = (1 - jax.random.uniform(key, shape, steps.dtype)) * steps[..., -1:]  # above 0: no empty step is met
    return (steps[..., None, :] < waiting[..., None]).sum(-1)


def reparameterised(key: Array, log_weight: Array, loc: Array, scale: Array, noise: Array) -> Array:
    """z (…, K, p), K independent draws for each mixture, with gradients in everything but the noise.

    log_weight: (…, M), normalised, `MASKED` where there is no component. loc, scale: (…, M, p). noise: standard normal,
    sample shape + (…, K, p).
    """
    weight = jnp.exp(log_weight)
    fixed = stop_gradient((log_weight, loc, scale))
    chosen = components_drawn(key, fixed[0], noise.shape[:-1])
    whole = (*noise.shape[:-2], *loc.shape[-2:])
    mean, deviation = (jnp.take_along_axis(jnp.broadcast_to(x, whole), chosen[..., None], axis=-2) for x in fixed[1:])
    z = mean + deviation * noise
    residual, responsibility, flux = _velocity(*fixed, z)
    return (
        z
        + responsibility @ (loc - fixed[1])
        + ((responsibility[..., None] * residual) * (scale - fixed[2])[..., None, :, :]).sum(-2)
        + (flux * (weight - stop_gradient(weight))[..., None, :, None]).sum(-2)
    )


def _velocity(log_weight: Array, loc: Array, scale: Array, z: Array) -> tuple[Array, Array, Array]:
    """(z − μ_i) / σ_i (…, K, M, p), w_i q_i / q (…, K, M) and the velocity for each unit of w_i (…, K, M, p)."""
    centre = (jnp.exp(log_weight)[..., None] * loc).sum(-2, keepdims=True)[..., None, :, :]
    real = (log_weight > MASKED)[..., None]
    narrow = jnp.where(real, scale, jnp.inf).min(-2, keepdims=True)[..., None, :, :]
    residual, log_q = _standardised(z[..., None, :], loc[..., None, :, :], scale[..., None, :, :])
    standard, log_r = _standardised(z[..., None, :], centre, narrow)
    joint = log_weight[..., None, :] + log_q.sum(-1)
    log_mixture = logsumexp(joint, axis=-1, keepdims=True)
    between = _before(log_q) + jnp.flip(_before(jnp.flip(log_r, -1)), -1)
    side = jnp.where(standard > 0, -1.0, 1.0)  # of r: its nearer tail holds the digits
    gap = (ndtr(side * residual) - ndtr(side * standard)) * side
    largest = 0.9 * math.log(jnp.finfo(gap.dtype).max)  # for 0 times it is added to the draw
    flux = -jnp.sign(gap) * jnp.exp(jnp.minimum(jnp.log(jnp.abs(gap)) + between - log_mixture[..., None], largest))
    return residual, jnp.exp(joint - log_mixture), jnp.where(real[..., None, :, :], flux, 0)


def _before(x: Array) -> Array:
    """Σ_{e<d} x_e: not what is left of a sum, since single densities can be −∞."""
    return jnp.pad(x[..., :-1].cumsum(-1), ((0, 0),) * (x.ndim - 1) + ((1, 0),))


def _standardised(z: Array, loc: Array, scale: Array) -> tuple[Array, Array]:
    """(z − μ) / σ and the log-density of each coordinate."""
    residual = (z - loc) / scale
    return residual, -0.5 * (residual**2 + math.log(2 * math.pi)) - jnp.log(scale)
