"""Multi-head denoising attention over a random measure on NumPyro (Henderson & Fehr, ICLR 2023, §2).

A head's query q = W_Q y + b_Q, lifted to u = W_Kᵀ q ∈ R^p, is read as v + noise with v ~ F, noise ~ N(0, r I) and
r = √d, d = p / H the width of a head; its output is W_V E[v | u] + b_V. Of F = Σ_k π_k δ(z_k), drawn in training:

    w_k ∝ exp(q · W_K z_k / r + β_k),    E[v | u] = Σ_k w_k z_k,    β_k = log π_k − |z_k|² / (2 r)

so that β = 0 is plain attention over the z_k. Of F = Σ_i π_i N(μ_i, diag σ_i²), the mean measure of a posterior, with
the gates g = σ² / (r + σ²), elementwise, and β_i = log π_i − |μ_i|² / (2 r):

    w_i ∝ exp(q · W_K (1 − g_i) μ_i / r + u² · g_i / (2 r) + β_i + ½ Σ_j (g_ij μ_ij² / r − log(1 + σ_ij² / r)))
    E[v | u] = Σ_i w_i ((1 − g_i) μ_i + g_i u)

Nothing large cancels in it, and only g meets u at width p. A bias of W_K changes no weight, so there is none.
Shapes: … a batch, n_q queries, n atoms or components, H heads.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array

from ...models.errors import BadInput
from ..measures import Atoms, Components, Keys, Projections, noise_variance
from .precision import check_precision, products_in


def sampled(atoms: Atoms, projections: Projections, heads: int, relative: bool = False) -> Keys:
    """The training form: attention over one draw of the measure. relative: whether log_weight is β already."""
    root = noise_variance(projections, heads)
    z, beta = _precise(atoms.z, _each(atoms.mask)), _precise(atoms.log_weight, atoms.mask)
    if not relative:
        beta = beta - (z**2).sum(-1) / (2 * root)
    return _keys(z, beta, atoms.mask, projections, heads)


def mean_measure(
    components: Components,
    projections: Projections,
    heads: int,
    rule: Literal["exact", "reference"] = "exact",
    relative: bool = False,
) -> Keys:
    """The evaluation form: attention over the mean of a Dirichlet process, a plug-in and no part of any bound.

    rule: `exact` is E[v | u]; `reference` leaves u² · g / (2 r) out, as the published code does, which disfavours
    broad components. relative: whether log_weight is β already.
    """
    if rule not in ("exact", "reference"):
        raise BadInput(f"the rule of a mean measure is exact or reference, not {rule!r}")
    root = noise_variance(projections, heads)
    mask = components.mask
    loc, variance = _precise(components.loc, _each(mask)), _precise(components.variance, _each(mask))
    beta = _precise(components.log_weight, mask)
    gate = variance / (root + variance)
    scalar, square = gate.shape[-1] == 1, loc**2
    norm = square.sum(-1)
    gated = gate[..., 0] * norm if scalar else (gate * square).sum(-1)
    spread = jnp.log1p(variance / root).sum(-1) * (loc.shape[-1] if scalar else 1)
    beta = beta + 0.5 * (gated / root - spread)
    if not relative:
        beta = beta - norm / (2 * root)
    keys = _keys(loc * (root / (root + variance)), beta, mask, projections, heads)
    keys = keys._replace(gate=gate.astype(keys.key.dtype))
    if rule == "exact":
        keys = keys._replace(square=(gate / (2 * root)).astype(keys.key.dtype))
    if not scalar:
        return keys
    key, value = (weight.reshape(heads, -1, weight.shape[-1]) for weight in (projections.key, projections.value))
    lifted = _product("hdp,hep->hde", key, jnp.concatenate((key, value), -2))
    return keys._replace(lifted=lifted.astype(keys.key.dtype))


def attend(
    y: Array, keys: Keys, projections: Projections, visible: Array | None = None, precision: str = "float32"
) -> Array:
    """The heads' outputs side by side: y (…, n_q, p_q) to (…, n_q, p).

    visible: (n_q, n), False where a query does not see an atom; one that it sees must be there, the prior's say.
    precision: of the products with gates of width p alone. Multiply-adds of each query and component: 2 p, as plain
    attention; with gates of width p 2 p + 2 H p.
    """
    heads = keys.key.shape[-3]
    query = _projected(y, projections.query, projections.query_bias, heads)
    root = query.shape[-1] ** 0.5
    logits = _product("...hqd,...hkd->...hqk", query, keys.key) / root + keys.bias[..., None, None, :]
    if keys.gate is None:
        found = _weighted(logits, keys.value, visible)[1]
    elif keys.lifted is None:
        found = _general(query, logits, keys, projections, visible, check_precision(precision))
    else:
        found = _scalar(query, logits, keys, visible)
    found = jnp.swapaxes(found, -3, -2).astype(query.dtype)
    return found.reshape(*found.shape[:-2], -1)


def weights(y: Array, keys: Keys, projections: Projections) -> Array:
    """w of `attend`, (…, H, n_q, n), written out: to be looked at."""
    heads = keys.key.shape[-3]
    query = _projected(y, projections.query, projections.query_bias, heads)
    logits = _product("...hqd,...hkd->...hqk", query, keys.key) / query.shape[-1] ** 0.5
    logits = logits + keys.bias[..., None, None, :]
    if keys.square is not None:
        lifted = _lifting(query, projections.key.reshape(heads, -1, projections.key.shape[-1]))
        square = jnp.broadcast_to(keys.square, (*keys.square.shape[:-1], lifted.shape[-1]))
        logits = logits + _product("...hqp,...kp->...hqk", lifted**2, square)
    return jax.nn.softmax(logits, -1)


def causal(y: Array, samples: int = 1) -> Array:
    """`visible` of self-attention from left to right: query t of y (…, T, p_q) sees the prior and places 0 to t.

    Keys are the prior's and those of the T places, all of them so many times in turn as there are samples of each.
    """
    steps = y.shape[-2]
    return jnp.tile(jnp.tri(steps, steps + 1, 1, dtype=bool), (1, samples))


def _each(mask: Array | None) -> Array | None:
    """(…, n, 1), for vectors."""
    return None if mask is None else mask[..., None]


def _precise(x: Array, mask: Array | None) -> Array:
    """At least float32, with 0 where the mask is False."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return x if mask is None else jnp.where(mask, x, 0)


def _keys(loc: Array, beta: Array, mask: Array | None, projections: Projections, heads: int) -> Keys:
    """Rounded to the type of the projections at the end, the bias with its largest subtracted."""
    dtype = projections.key.dtype
    lowest = float(jnp.finfo(dtype).min) / 128  # a logit that leaves no weight
    if mask is not None:
        beta = jnp.where(mask, beta, -jnp.inf)
    largest = jnp.maximum(jax.lax.stop_gradient(beta).max(-1, keepdims=True), lowest)
    bias = jnp.maximum(beta - largest, lowest).astype(dtype)
    loc = loc.astype(dtype)
    key = _projected(loc, projections.key, None, heads)
    return Keys(key, _projected(loc, projections.value, projections.value_bias, heads), bias)


def _product(axes: str, *operands: Array) -> Array:
    """In at least float32; HIGHEST, so that a GPU does not take TF32."""
    kind = jnp.promote_types(operands[0].dtype, jnp.float32)
    return jnp.einsum(axes, *operands, precision=jax.lax.Precision.HIGHEST, preferred_element_type=kind)


def _projected(x: Array, weight: Array, bias: Array | None, heads: int) -> Array:
    """(…, n, in) to (…, H, n, d), in the type of the weight."""
    found = _product("...i,oi->...o", x, weight)
    found = (found if bias is None else found + bias).astype(weight.dtype)
    return jnp.swapaxes(found.reshape(*found.shape[:-1], heads, -1), -3, -2)


def _weighted(logits: Array, values: Array, visible: Array | None) -> tuple[Array, Array]:
    """The weights (…, H, n_q, n) over what each query sees, in the type of the values; and the mean of the values."""
    logits = logits if visible is None else jnp.where(visible, logits, -jnp.inf)
    weights = jax.nn.softmax(logits, -1).astype(values.dtype)
    return weights, _product("...hqk,...hkd->...hqd", weights, values)


def _scalar(query: Array, logits: Array, keys: Keys, visible: Array | None) -> Array:
    """Gates of width 1: |u|² and W_V u from the query itself."""
    assert keys.gate is not None
    assert keys.lifted is not None
    norms, through = jnp.split(_lifting(query, keys.lifted), 2, -1)
    if keys.square is not None:
        logits = logits + keys.square[..., None, None, :, 0] * (norms * query).sum(-1, keepdims=True)
    weights, mean = _weighted(logits, keys.value, visible)
    return mean + (weights * keys.gate[..., None, None, :, 0]).sum(-1, keepdims=True) * through


def _general(
    query: Array, logits: Array, keys: Keys, projections: Projections, visible: Array | None, precision: str
) -> Array:
    """Gates of width p: their products are of all heads at once, (H n_q, p) and (p, n), since heads share them."""
    assert keys.gate is not None
    heads, dtype = query.shape[-3], query.dtype
    operand = products_in(precision, dtype)
    lift, value = (weight.reshape(heads, -1, weight.shape[-1]) for weight in (projections.key, projections.value))
    lifted = _lifting(query, lift)
    if keys.square is not None:
        squares = (lifted**2).astype(operand)
        logits = logits + _product("...hqp,...kp->...hqk", squares, keys.square.astype(operand))
    weights, mean = _weighted(logits, keys.value, visible)
    gate = _product("...hqk,...kp->...hqp", weights.astype(operand), keys.gate.astype(operand))
    return mean + _lifting((gate * lifted).astype(dtype), jnp.swapaxes(value, -2, -1))


def _lifting(x: Array, weight: Array) -> Array:
    """(…, H, n_q, in) and (H, in, out) to (…, H, n_q, out); XLA is faster with the weight repeated over the batch."""
    return _product("...qi,...io->...qo", x, jnp.broadcast_to(weight, (*x.shape[:-3], *weight.shape)))
