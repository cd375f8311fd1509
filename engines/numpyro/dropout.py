"""Dropout whose noise is half of what `jax.random.bernoulli` draws: one word of 32 random bits decides two elements.

Each is decided by 16 bits; the scale belongs to the rate so rounded (by at most 2⁻¹⁷), so that the expectation is
exact.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array


def dropped(x: Array, rate: float, key: Array | None) -> Array:
    """x with each element zero with probability `rate`, the others scaled by 1 / (1 − rate); x without a key."""
    if key is None or rate == 0:
        return x
    dropped_of = round(rate * 2**16)
    draws = jax.random.bits(key, ((x.size + 1) // 2,), "uint32")
    bits = jax.lax.bitcast_convert_type(draws, jnp.uint16).reshape(-1)[: x.size].reshape(x.shape)
    return jnp.where(bits >= dropped_of, x * (2**16 / (2**16 - dropped_of)), 0)
