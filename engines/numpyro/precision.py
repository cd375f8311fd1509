"""Matrix products with bfloat16 operands and float32 accumulation, for float32 arrays.

Operands are rounded before the product; results and everything around the products stay float32, and float64
is never touched. XLA takes the processor's bfloat16 units (AMX), or the GPU's, for such products.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from ...models.errors import BadInput

PRECISIONS = ("float32", "bfloat16")


def check_precision(precision: str) -> str:
    """`precision`, if there is such a one."""
    if precision not in PRECISIONS:
        raise BadInput(f"precision is one of {', '.join(PRECISIONS)}, not {precision!r}")
    return precision


def products_in(precision: str, dtype: DTypeLike) -> DTypeLike:
    """What operands of `dtype` are rounded to for products of `precision`."""
    return jnp.bfloat16 if precision == "bfloat16" and dtype == jnp.float32 else dtype


def product(x: Array, weight: Array, precision: str = "float32") -> Array:
    """x Wᵀ: (…, in), (out, in) to (…, out), as one product of two matrices."""
    flat = x.reshape(-1, x.shape[-1])
    out = (_rounded if products_in(precision, x.dtype) != x.dtype else _dot)(flat, weight)
    return out.reshape(*x.shape[:-1], weight.shape[0])


def onto(x: Array, base: Array, weight: Array) -> Array:
    """base + x Wᵀ."""
    return base + product(x, weight)


def _product_with(upstream: Array, weight: Array, precision: str = "float32") -> Array:
    """u W: (…, out), (out, in) to (…, in): the gradient of x. `product` with Wᵀ would lose bfloat16."""
    operand = products_in(precision, upstream.dtype)
    flat = upstream.reshape(-1, upstream.shape[-1]).astype(operand)
    return _dot(flat, weight.astype(operand), 1, 0).reshape(*upstream.shape[:-1], weight.shape[1])


def _product_over_rows(upstream: Array, x: Array, precision: str = "float32") -> Array:
    """uᵀ x: (…, out), (…, in) to (out, in): the gradient of W."""
    upstream, x = upstream.reshape(-1, upstream.shape[-1]), x.reshape(-1, x.shape[-1])
    operand = products_in(precision, upstream.dtype)
    if operand == upstream.dtype:
        return _dot(upstream, x, 0, 0)
    return _rounded_rows(upstream.astype(operand), x.astype(operand))


def _dot(x: Array, y: Array, over: int = 1, other: int = 1) -> Array:
    """The product over axis `over` of x and `other` of y; HIGHEST, so that a GPU does not take TF32."""
    axes = (((over,), (other,)), ((), ()))
    kind = jnp.promote_types(x.dtype, jnp.float32)
    return jax.lax.dot_general(x, y, axes, precision=jax.lax.Precision.HIGHEST, preferred_element_type=kind)


def _rounded_rows(x: Array, y: Array) -> Array:
    """xᵀ y of bfloat16 matrices, with the smaller one transposed.

    XLA has no fast product over the first axis of a left operand, and folds a plain transpose into the
    product again; the rows of zeros keep it a copy.
    """
    if x.shape[1] > y.shape[1]:
        return _rounded_rows(y, x).T
    turned = jnp.pad(x.T, ((0, 16), (0, 0)))
    return _dot(turned, y, 1, 0)[: x.shape[1]]


@jax.custom_vjp
def _rounded(x: Array, weight: Array) -> Array:
    return _dot(x.astype(jnp.bfloat16), weight.astype(jnp.bfloat16))


def _rounded_fwd(x: Array, weight: Array) -> tuple[Array, tuple[Array, Array]]:
    x, weight = x.astype(jnp.bfloat16), weight.astype(jnp.bfloat16)
    return _dot(x, weight), (x, weight)


def _rounded_bwd(operands: tuple[Array, Array], upstream: Array) -> tuple[Array, Array]:
    (x, weight), upstream = operands, upstream.astype(jnp.bfloat16)
    return _dot(upstream, weight, 1, 0), _rounded_rows(upstream, x)


_rounded.defvjp(_rounded_fwd, _rounded_bwd)
