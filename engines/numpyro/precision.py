"""Matrix products with bfloat16 operands and float32 accumulation, for float32 arrays.

Operands are rounded before the product, results and everything around the products stay float32; float64 is never
touched. XLA takes the processor's bfloat16 units (AMX) or the GPU's for such products.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from ...models.errors import BadInput

PRECISIONS = ("float32", "bfloat16")


def check_precision(precision: str) -> str:
    """`precision`, if there is such a one."""
    if precision not in PRECISIONS:
        raise BadInput(f"precision is one of {', '.join(PRECISIONS)}, not {precision!r}")
    return precision


def product(x: Array, weight: Array, precision: str = "float32") -> Array:
    """x Wᵀ: (…, in), (out, in) to (…, out), as one product of two matrices."""
    flat = x.reshape(-1, x.shape[-1])
    out = _rounded(flat, weight) if precision == "bfloat16" and x.dtype == jnp.float32 else dot(flat, weight)
    return out.reshape(*x.shape[:-1], weight.shape[0])


def dot(x: Array, y: Array, contract: tuple[int, int] = (1, 1)) -> Array:
    """The product of two matrices over the axes `contract`; bfloat16 operands give float32."""
    kind = jnp.float32 if x.dtype == jnp.bfloat16 else x.dtype
    axes = (((contract[0],), (contract[1],)), ((), ()))
    return jax.lax.dot_general(x, y, axes, precision=jax.lax.Precision.HIGHEST, preferred_element_type=kind)


@jax.custom_vjp
def _rounded(x: Array, weight: Array) -> Array:
    return dot(x.astype(jnp.bfloat16), weight.astype(jnp.bfloat16))


def _rounded_fwd(x: Array, weight: Array) -> tuple[Array, tuple[Array, Array]]:
    x, weight = x.astype(jnp.bfloat16), weight.astype(jnp.bfloat16)
    return dot(x, weight), (x, weight)


def _rounded_bwd(operands: tuple[Array, Array], upstream: Array) -> tuple[Array, Array]:
    (x, weight), upstream = operands, upstream.astype(jnp.bfloat16)
    return dot(upstream, weight, (1, 0)), dot(upstream, x, (0, 0))


_rounded.defvjp(_rounded_fwd, _rounded_bwd)
