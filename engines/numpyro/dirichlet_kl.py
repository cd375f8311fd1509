"""KLs between Gamma, Dirichlet and Poisson laws from the logarithms of their counts: stable in float32 for every count.

With φ(y) = log Γ(y) − y log y + y, a convex function whose derivative is ψ(y) − log y,

    KL(Gamma(a, 1)‖Gamma(b, 1)) = (a − b) ψ(a) − log Γ(a) + log Γ(b) = KL(Poisson(b)‖Poisson(a)) + G(a, b)
    G(a, b)                     = φ(b) − φ(a) − (b − a) φ'(a) ≥ 0
    KL(Dir(a)‖Dir(b))           = Σ_i KL(Gamma(a_i)‖Gamma(b_i)) − KL(Gamma(Σa)‖Gamma(Σb))
                                = Σb · KL(b / Σb ‖ a / Σa) + Σ_i G(a_i, b_i) − G(Σa, Σb)

The counts themselves, which cancel in the second line, do not appear in the third: φ grows like log y only, and y φ'(y)
lies between −1 and −½.
"""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.special import digamma, gammaln

from ..gamma import SHIFTED, tails


def gamma_kl(log_a: Array, log_b: Array) -> Array:
    """KL(Gamma(a, 1)‖Gamma(b, 1)) in nats, (…). Grows like a where a ≫ b."""
    return poisson_kl(log_a, log_b) + beyond_poisson(log_a, log_b)


def dirichlet_kl(log_total_posterior: Array, log_total_prior: Array, atoms: Array | float) -> Array:
    """KL(Dir(A/K, …, A/K)‖Dir(B/K, …, B/K)) for K `atoms`, in nats, from log A and log B; all (…).

    The L_D of the nonparametric variational bottleneck (Henderson & Fehr 2023): it grows like (K − 1)/2 log A with A,
    and like K (log(A/B) − 1 + B/A) with K.
    """
    atoms = jnp.asarray(atoms, log_total_posterior.dtype)
    share = jnp.log(atoms)
    each = beyond_poisson(log_total_posterior - share, log_total_prior - share)
    return atoms * each - beyond_poisson(log_total_posterior, log_total_prior)


def poisson_kl(log_a: Array, log_b: Array) -> Array:
    """KL(Poisson(b)‖Poisson(a)) = b log(b/a) − (b − a) in nats, (…), with second-order errors where b ≈ a."""
    ratio, a, b = log_b - log_a, jnp.exp(log_a), jnp.exp(log_b)
    near = jnp.abs(ratio) < 1
    change = jnp.where(near, a * jnp.expm1(jnp.where(near, ratio, 0)), b - a)
    return b * ratio - change


def beyond_poisson(log_a: Array, log_b: Array) -> Array:
    """G(a, b), the share of the KL of two Gammas that is not of two Poissons, (…)."""
    excess, slope = log_gamma_excess(log_a)
    return log_gamma_excess(log_b)[0] - excess - jnp.expm1(log_b - log_a) * slope


def log_gamma_excess(log_y: Array) -> tuple[Array, Array]:
    """φ(y) and y φ'(y), each (…)."""
    small = log_y < math.log(SHIFTED)
    log, large = jnp.where(small, log_y, 0), jnp.where(small, math.log(SHIFTED), log_y)
    y, inverse = jnp.exp(log), jnp.exp(-large)
    of_log_gamma, of_digamma = _tail(tails(SHIFTED)[::2, 0], inverse), _tail(tails(SHIFTED)[1::2, 1], inverse)
    constant = 0.5 * math.log(2 * math.pi)
    excess = jnp.where(small, gammaln(1 + y) - log - y * log + y, constant - 0.5 * large + of_log_gamma)
    slope = jnp.where(small, y * (digamma(1 + y) - log) - 1, -0.5 - of_digamma)
    return excess, slope


def _tail(coefficients: np.ndarray, inverse: Array) -> Array:
    """Σ_k coefficients[k] inverse^(2k + 1)."""
    square, found = inverse**2, jnp.zeros_like(inverse)
    for coefficient in coefficients[::-1]:
        found = found * square + float(coefficient)
    return found * inverse
