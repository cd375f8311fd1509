"""Two families on the sphere S^{m−1} ⊂ R^m as functions of their concentration κ alone, on the device, without SciPy.

Both are p(z) = exp(L(κ) + κ T(μᵀz)) / |S^{m−1}| with T ≤ 0, and T = 0 at z = μ:

- von Mises-Fisher, T(w) = w − 1 (Davidson et al. 2018);
- power spherical, T(w) = log((1 + w) / 2) (De Cao & Aziz 2020, equation 5).

Hence E[T] = −L'(κ), and the KL to the uniform is L − κ L', with derivative −κ L''. In this form nothing cancels:
float32 keeps its digits up to κ = 1e5. The gradients are these formulas, not those of their expansions.
"""

from __future__ import annotations

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ..bessel import CROSSOVER, debye, series
from ..gamma import SHIFTED, log_gamma_difference, tails


class Moments(NamedTuple):
    """Each of the shape and dtype of κ.

    log_peak: L, the log-density at μ against the uniform. slope: L' > 0. kl: to the uniform, in nats.
    mean_resultant: E[μᵀz]. The gradient in κ reaches all but `slope`.
    """

    log_peak: Array
    slope: Array
    kl: Array
    mean_resultant: Array


def von_mises_fisher(m: int, concentration: Array) -> Moments:
    """Of the von Mises-Fisher distribution on the sphere in R^m; relative errors below 1e-9 in float64, for m ≥ 2."""
    return Moments(*_von_mises_fisher(m, concentration))


def power_spherical(m: int, concentration: Array) -> Moments:
    """Of the power spherical distribution on the sphere in R^m; relative errors below 1e-9 in float64, for m ≥ 2."""
    log_peak, slope, kl = _power_spherical(m, concentration)
    return Moments(log_peak, slope, kl, concentration / (concentration + (m - 1)))


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _von_mises_fisher(m: int, concentration: Array) -> tuple[Array, ...]:
    """κ (…) to L, L' = 1 − A, KL and A = I_{m/2}(κ) / I_{m/2−1}(κ)."""
    return _with_derivative(m, concentration)[0]


def _with_derivative(m: int, concentration: Array) -> tuple[tuple[Array, ...], Array]:
    if m / 2 - 1 >= CROSSOVER:
        resultant, slope, derivative, kl = _debye(m, concentration)
    else:
        low = _series(m, jnp.minimum(concentration, CROSSOVER))
        high = _debye(m, jnp.maximum(concentration, CROSSOVER))
        resultant, slope, derivative, kl = (
            jnp.where(concentration < CROSSOVER, *both) for both in zip(low, high, strict=True)
        )
    return (kl + concentration * slope, slope, kl, resultant), derivative


@_von_mises_fisher.defjvp
def _von_mises_fisher_jvp(m, primals, tangents):
    (concentration,), (moved,) = primals, tangents
    found, derivative = _with_derivative(m, concentration)
    moved_resultant = moved * derivative
    return found, (moved * found[1], jnp.zeros_like(moved), concentration * moved_resultant, moved_resultant)


def _debye(m: int, concentration: Array) -> tuple[Array, ...]:
    """A, 1 − A, A' and the KL by Debye's expansion, `engines.bessel`."""
    order, (start, offset, *polynomials) = m / 2 - 1, debye(m)
    s = jnp.sqrt(concentration**2 + order**2)
    cosine, ratio = concentration / s, start / s
    first, second, rest = (_horner(coefficients, ratio) for coefficients in polynomials)
    bend = first * ratio + 0.5
    gap, correction = s + order, cosine * bend / s
    resultant = concentration / gap - correction
    deficit = order * (order / (s + concentration) + 1) / gap + correction
    square = cosine**2
    curvature = bend * (1 - 2 * square) - square * second * ratio
    derivative = (order / gap - curvature / s) / s
    excess = (concentration**2 - (start**2 - order**2)) / (s + start)
    kl = 0.5 * jnp.log1p(excess / start) - square * bend + excess / s * rest + offset
    if order:
        kl = kl + order * jnp.log1p(concentration**2 / (2 * order * gap))
    return resultant, deficit, derivative, kl


def _series(m: int, concentration: Array) -> tuple[Array, ...]:
    """A, 1 − A, A' and the KL for κ ≤ `CROSSOVER`: j is distributed as the terms of the power series, κA = 2 E[j]."""
    concentration = jnp.maximum(concentration, 1e-12)  # whose square float32 still holds
    coefficients = series(m)
    j = jnp.arange(1, len(coefficients) + 1, dtype=concentration.dtype)
    ratio = jnp.broadcast_to((concentration / CROSSOVER)[..., None] ** 2, (*concentration.shape, len(coefficients)))
    terms = jnp.cumprod(ratio, -1) * jnp.asarray(coefficients, concentration.dtype)
    others = terms.sum(-1)
    mean = (terms * j).sum(-1) / (1 + others)
    variance = ((terms * (j - mean[..., None]) ** 2).sum(-1) + mean**2) / (1 + others)
    resultant = 2 * mean / concentration
    derivative = (4 * variance - 2 * mean) / concentration**2
    return resultant, 1 - resultant, derivative, 2 * mean - jnp.log1p(others)


def _horner(coefficients: np.ndarray, x: Array) -> Array:
    """Σ_d coefficients[d] x^d."""
    found = jnp.zeros_like(x)
    for coefficient in coefficients[::-1]:
        found = found * x + float(coefficient)
    return found


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _power_spherical(m: int, concentration: Array) -> tuple[Array, ...]:
    """κ (…) to L, L' = ψ(m − 1 + κ) − ψ((m − 1) / 2 + κ) and KL."""
    return _with_curvature(m, concentration)[0]


def _with_curvature(m: int, concentration: Array) -> tuple[tuple[Array, ...], Array]:
    low = gap = (m - 1) / 2  # (1 + w) / 2 is Beta(low + κ, low)
    shift = max(0, math.ceil(SHIFTED - low))
    start, end = low + shift, low + shift + gap
    inverse = 1 / (concentration + start), 1 / (concentration + end)
    log_gamma, digamma, trigamma = (
        _horner(tail, inverse[1]) * inverse[1] - _horner(tail, inverse[0]) * inverse[0] for tail in tails(start).T
    )
    between = gap * inverse[0] * inverse[1]
    slope = jnp.log1p(gap * inverse[0]) + 0.5 * between - digamma
    curvature = between * (1 + 0.5 * (inverse[0] + inverse[1])) - trigamma
    kl = (end - 0.5) * jnp.log1p(concentration / end) - (start - 0.5) * jnp.log1p(concentration / start)
    kl = kl + concentration * (digamma - 0.5 * between) + log_gamma - log_gamma_difference(start, end)
    if shift:
        a, x = low + jnp.arange(shift, dtype=kl.dtype), concentration[..., None]
        inside = gap / ((a + x) * (a + gap + x))
        slope = slope + inside.sum(-1)
        curvature = curvature + (inside * (1 / (a + x) + 1 / (a + gap + x))).sum(-1)
        kl = kl + (jnp.log1p(x / a) - jnp.log1p(x / (a + gap)) - x * inside).sum(-1)
    return (kl + concentration * slope, slope, kl), curvature


@_power_spherical.defjvp
def _power_spherical_jvp(m, primals, tangents):
    (concentration,), (moved,) = primals, tangents
    found, curvature = _with_curvature(m, concentration)
    return found, (moved * found[1], jnp.zeros_like(moved), moved * concentration * curvature)
