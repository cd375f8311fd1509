"""The array functions of `engines/arrays.py` on JAX."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

abs = jnp.abs
exp = jnp.exp
log = jnp.log
sqrt = jnp.sqrt
where = jnp.where


def concatenate(arrays: Sequence[Array], axis: int = 0) -> Array:
    return jnp.concatenate(tuple(arrays), axis=axis)


def sort(x: Array, axis: int = -1) -> Array:
    return jnp.sort(x, axis=axis)


def logsumexp(x: Array, axis: int) -> Array:
    return jax.nn.logsumexp(x, axis=axis)


def softmax(x: Array, axis: int) -> Array:
    return jax.nn.softmax(x, axis=axis)


def stop_gradient(x: Any) -> Any:
    """An array, or a distribution (a pytree of arrays), with the same values and no gradient."""
    return jax.tree.map(lambda leaf: jax.lax.stop_gradient(leaf) if isinstance(leaf, Array) else leaf, x)


def like(values: np.ndarray, x: Array) -> Array:
    """`values` as an array of the kind, type and place of `x`."""
    return jnp.asarray(values, x.dtype)
