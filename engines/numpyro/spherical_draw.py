"""Draws on the sphere around a mean direction μ, reparameterised in μ and in the concentration κ.

With θ the angle between a draw and μ, p(θ) ∝ exp(h(θ)), h = κ T(cos θ) + (m − 2) log sin θ (T and L as in
`spherical_moments`), the implicit gradient (Figurnov et al. 2018) is dθ/dκ = −∂_κ F(θ) / p(θ), F the distribution function:

    dθ/dκ = −∫_0^θ (T(s) + L'(κ)) exp(h(s) − h(θ)) ds = ∫_θ^π (T(s) + L'(κ)) exp(h(s) − h(θ)) ds

Unlike the gradient along the accepted proposal alone (Davidson et al. 2018 without their correction) it is unbiased.
The integral runs over the tail in which θ lies, as far as the integrand reaches, and is formed only where a gradient is
wanted. Its variable is x = log(tan²(s/2) / tan²(θ/2)): the tails are then smooth for every m, and no trigonometry is left.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from ..quadrature import REACH, tail_rule

PROPOSALS = 8
"""Drawn at once for each angle: at most a rejection in three, so that one angle in 6,000 needs a second block."""


class Family(NamedTuple):
    """How θ is drawn, and how the integrand of its implicit gradient changes with it.

    propose: (key, m, κ, |n|²) to sin²(θ/2) and cos²(θ/2), all in the shape of |n|² but κ, which broadcasts to it; n is the
        standard normal in R^{m−1} whose direction turns the draw around μ.
    change: (m, κ, sin²(θ/2), cos²(θ/2)) to T at θ; −∂_x T there; the curvature of −log p(x) at its mode; how long the
        tail towards π is in x beyond what that curvature says; and the function (q, log(1 + q)), q = (e^x − 1) sin²(θ/2),
        to T(s) − T(θ).
    """

    propose: Callable[[Array, int, Array, Array], tuple[Array, Array]]
    change: Callable[[int, Array, Array, Array], tuple[Array, Array, Array, Array, Callable[..., Array]]]


def draw(family: Family, key: Array, loc: Array, concentration: Array, slope: Array, shape: tuple[int, ...]) -> Array:
    """z of shape (…, m), of unit norm, with gradients in loc (…, m) and in concentration (…), which broadcast to it.

    slope: L'(κ), of the shape of κ. z is (cos θ, sin θ · n / |n|), reflected from −e₁ to μ, or from e₁ to μ where
    μ₁ < 0: never by a short vector.
    """
    normal_key, angle_key = jax.random.split(key)
    normal = jax.random.normal(normal_key, (*shape[:-1], shape[-1] - 1), loc.dtype)
    square = (normal**2).sum(-1)
    fixed = jax.lax.stop_gradient(concentration)
    half = family.propose(angle_key, shape[-1], fixed, square)
    cosine, sine = _angle(family, shape[-1], concentration, jax.lax.stop_gradient(slope), *half)
    first, rest = loc[..., 0], loc[..., 1:]
    unit = normal / jnp.sqrt(square)[..., None]
    along = sine * (unit * rest).sum(-1)
    side = jnp.where(first < 0, -1, 1)
    tail = unit * sine[..., None] + rest * (cosine - along / (1 + jnp.abs(first)))[..., None]
    return jnp.concatenate(((first * cosine - side * along)[..., None], tail), -1)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _angle(
    family: Family, m: int, concentration: Array, slope: Array, sine2: Array, cosine2: Array
) -> tuple[Array, Array]:
    """cos θ and sin θ, whose gradient in κ is the implicit one."""
    return cosine2 - sine2, 2 * jnp.sqrt(sine2 * cosine2)


@_angle.defjvp
def _angle_jvp(family, m, primals, tangents):
    cosine, sine = _angle(family, m, *primals)
    moved = tangents[0] * _implicit(family, m, *primals)
    return (cosine, sine), (-sine * moved, cosine * moved)


def _implicit(family: Family, m: int, concentration: Array, slope: Array, sine2: Array, cosine2: Array) -> Array:
    """dθ/dκ at sin²(θ/2), cos²(θ/2)."""
    half = (m - 1) / 2
    statistic, steepness, curvature, beyond, moved = family.change(m, concentration, sine2, cosine2)
    score = statistic + slope
    inner = score > 0  # nearer to μ than the mean of T
    distance = jnp.abs((cosine2 - sine2) * half - concentration * steepness) / curvature  # about, from the mode
    square = 2 * REACH / curvature + jnp.where(inner, REACH / half, beyond) ** 2
    reach = square / (jnp.sqrt(distance**2 + square) + distance)
    nodes, weights = (jnp.asarray(each, sine2.dtype) for each in tail_rule(m))
    x = jnp.where(inner, -reach, reach)[..., None] * nodes
    q = jnp.expm1(x) * sine2[..., None]
    log = jnp.log1p(q)
    shift = moved(q, log)
    density = jnp.exp(half * (x - 2 * log) + jnp.asarray(concentration)[..., None] * shift)
    integral = (jnp.abs(score[..., None] + shift) * density * weights).sum(-1)
    return -jnp.sqrt(sine2 * cosine2) * reach * integral


def _propose_von_mises_fisher(key: Array, m: int, concentration: Array, square: Array) -> tuple[Array, Array]:
    """Wood's rejection (1994), in a form in which nothing cancels; for m = 3 the inverse of the distribution function."""
    concentration = jnp.broadcast_to(concentration, square.shape)
    return _inverse(key, concentration) if m == 3 else _wood(key, m, concentration)


def _inverse(key: Array, concentration: Array) -> tuple[Array, Array]:
    """m = 3: 1 − cos θ = −log(1 − u (1 − exp(−2κ))) / κ."""
    u = jax.random.uniform(key, concentration.shape, concentration.dtype)
    sine2 = jnp.minimum(jnp.log1p(u * jnp.expm1(-2 * concentration)) / (-2 * concentration), 1)
    return sine2, 1 - sine2


def _wood(key: Array, m: int, concentration: Array) -> tuple[Array, Array]:
    b = (m - 1) / (2 * concentration + jnp.sqrt(4 * concentration**2 + (m - 1) ** 2))

    def missing(carry):
        return ~carry[-1].all()

    def again(carry):
        key, *before, accepted = carry
        key, block = jax.random.split(key)
        *found, new = _first_accepted(block, m, b)
        kept = (jnp.where(accepted, old, fresh) for old, fresh in zip(before, found, strict=True))
        return key, *kept, accepted | new

    start = (key, jnp.zeros_like(b), jnp.ones_like(b), jnp.zeros(b.shape, bool))
    _, sine2, cosine2, _ = jax.lax.while_loop(missing, again, start)
    return sine2, cosine2


def _first_accepted(key: Array, m: int, b: Array) -> tuple[Array, Array, Array]:
    """sin²(θ/2), cos²(θ/2) of the first accepted proposal of each b (…), and whether there is one.

    A proposal is tan²(θ/2) = b (1 + x) / (1 − x), where (1 + x) / 2 is Beta((m − 1) / 2, (m − 1) / 2) by Ulrich's (1984)
    x = √(1 − u^{2/(m−2)}) cos 2πv; it is accepted with probability (y exp(1 − y))^{m−1}, y = (1 + b) / (1 − x + b (1 + x)).
    """
    u, v, level = jax.random.uniform(key, (3, PROPOSALS, *b.shape), b.dtype)
    left = u ** (2 / (m - 2)) if m > 2 else jnp.zeros_like(u)
    radius = jnp.sqrt(1 - left)
    below = left / (1 + radius) + radius * 2 * jnp.sin(v * (math.pi / 2)) ** 2  # 1 − x
    scaled = (2 - below) * b
    total = below + scaled
    y = (1 + b) / total
    accepted = (jnp.log(y) + 1 - y) * (m - 1) >= jnp.log(level)
    first = accepted.argmax(0, keepdims=True)
    sine2, cosine2 = (jnp.take_along_axis(part / total, first, 0)[0] for part in (scaled, below))
    return sine2, cosine2, accepted.any(0)


def _change_von_mises_fisher(m: int, concentration: Array, sine2: Array, cosine2: Array) -> Any:
    half = (m - 1) / 2
    root = jnp.sqrt(concentration**2 + half**2)
    beyond = jnp.maximum(REACH - 2 * concentration, 0) / half
    steepness = 2 * sine2 * (1 - sine2)
    return (
        -2 * sine2,
        steepness,
        half * root / (half + root),
        beyond,
        lambda q, _: -2 * cosine2[..., None] * q / (1 + q),
    )


def _propose_power_spherical(key: Array, m: int, concentration: Array, square: Array) -> tuple[Array, Array]:
    """(1 + cos θ) / 2 is Beta((m − 1) / 2 + κ, (m − 1) / 2), and |n|² / 2 is Gamma((m − 1) / 2), whatever n's direction."""
    far = square / 2
    near = jax.random.gamma(key, jnp.broadcast_to(concentration + (m - 1) / 2, square.shape), dtype=square.dtype)
    total = near + far
    return far / total, near / total


def _change_power_spherical(m: int, concentration: Array, sine2: Array, cosine2: Array) -> Any:
    half = (m - 1) / 2
    slower = concentration + half
    statistic = jnp.where(sine2 < 0.5, jnp.log1p(-sine2), jnp.log(cosine2))
    return statistic, sine2, half * slower / (half + slower), REACH / slower, lambda _, log: -log


VON_MISES_FISHER = Family(_propose_von_mises_fisher, _change_von_mises_fisher)
POWER_SPHERICAL = Family(_propose_power_spherical, _change_power_spherical)
