"""The law of a pen's step, on NumPyro.

log p(pen, dx, dy) = log Bernoulli(pen; sigmoid(a)) + log Σ_k π_k N(dx, dy; m_k, s_k, ρ_k)
−log N = log 2π + log s_1 + log s_2 + ½ log(1 − ρ²) + ½ u² + ½ (v − ρ u)² / (1 − ρ²),   (u, v) = ((dx, dy) − m) / s
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from numpyro.distributions import Distribution, constraints


class PenStrokes(Distribution):
    """(pen, dx, dy), event shape (3,).

    Args:
        pen: a (…).
        logits: log π up to a constant (…, K).
        loc, scale: m and s (…, K, 2).
        correlation: ρ (…, K), inside (−1, 1).
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012 - as NumPyro declares it
    support: Any = constraints.real_vector
    pytree_data_fields = ("pen", "logits", "loc", "scale", "correlation")

    def __init__(self, pen: Array, logits: Array, loc: Array, scale: Array, correlation: Array) -> None:
        self.pen, self.logits, self.loc, self.scale, self.correlation = pen, logits, loc, scale, correlation
        super().__init__(pen.shape, (3,), validate_args=False)

    def log_prob(self, value: Array, intermediates: Any = None) -> Array:
        pen, moves = value[..., 0], value[..., None, 1:]
        u, v = jnp.moveaxis((moves - self.loc) / self.scale, -1, 0)
        rest = 1 - self.correlation**2
        square = u**2 + (v - self.correlation * u) ** 2 / rest
        log_normal = -0.5 * (square + jnp.log(rest)) - jnp.log(self.scale).sum(-1) - math.log(2 * math.pi)
        log_moves = jax.nn.logsumexp(jax.nn.log_softmax(self.logits) + log_normal, -1)
        return log_moves - jax.nn.softplus(jnp.where(pen > 0.5, -self.pen, self.pen))

    def sample(self, key: Array | None, sample_shape: tuple[int, ...] = ()) -> Array:
        shape = (*sample_shape, *self.batch_shape)
        assert key is not None
        of_pen, of_component, of_move = jax.random.split(key, 3)
        pen = jax.random.bernoulli(of_pen, jax.nn.sigmoid(self.pen), shape).astype(self.loc.dtype)
        k = jax.random.categorical(of_component, self.logits, shape=shape)[..., None]
        correlation = jnp.take_along_axis(jnp.broadcast_to(self.correlation, (*shape, self.logits.shape[-1])), k, -1)[
            ..., 0
        ]
        loc, scale = (
            jnp.take_along_axis(jnp.broadcast_to(part, (*shape, *part.shape[-2:])), k[..., None], -2)[..., 0, :]
            for part in (self.loc, self.scale)
        )
        u, noise = jnp.moveaxis(jax.random.normal(of_move, (*shape, 2), self.loc.dtype), -1, 0)
        v = correlation * u + jnp.sqrt(1 - correlation**2) * noise
        return jnp.concatenate((pen[..., None], loc + scale * jnp.stack((u, v), -1)), -1)
