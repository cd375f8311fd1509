"""Coefficients of the modified Bessel functions I_ν that the von Mises-Fisher distribution needs, ν = m/2 − 1.

Two expansions cover every m ≥ 2 and κ > 0, both to 1e-10 and without cancellation:

- order ν ≥ 20 or κ ≥ 20: Debye's expansion, uniform in κ (DLMF 10.41.3 and 10.41.9), with s = √(ν² + κ²):
      log I_ν(κ) = s − ν asinh(ν/κ) − ½ log 2πs + U(s),   U(s) = Σ_k Σ_j a_kj s^−k (ν/s)^2j;
- else the power series I_ν(κ) = (κ/2)^ν / Γ(ν + 1) · Σ_j (κ²/4)^j / (j! (ν + 1)_j), which has positive terms only
  (DLMF 10.25.2).
"""

from __future__ import annotations

import math
from collections import defaultdict
from fractions import Fraction
from functools import cache
from typing import NamedTuple

import numpy as np

CROSSOVER = 20.0
"""Order or concentration from which on eight terms of Debye's expansion are exact to 1e-10."""
_TERMS = 8
_SERIES = 56

_Polynomial = dict[int, Fraction]


class Debye(NamedTuple):
    """U for one m, as polynomials in τ = s₀ / s, where s₀ is the smallest s: at κ = 0, or at κ = `CROSSOVER`.

    start: s₀. offset: of the KL to the uniform, see `debye`. first, second: coefficients (D,) of −s U' and of
    (s ∂_s)² U, for τ, τ², …, τ^D. remainder: coefficients (D,) of (U(s₀) − U(s)) / (1 − τ), for 1, τ, …, τ^(D−1).
    """

    start: float
    offset: float
    first: np.ndarray
    second: np.ndarray
    remainder: np.ndarray


@cache
def debye(m: int) -> Debye:
    """For the sphere in R^m. The offset is ½ log 2πs₀ − U(s₀) − log Γ(ν + 1) + ν log ν − ν, 0 where s₀ = ν."""
    order = m / 2 - 1
    start = order if order >= CROSSOVER else math.hypot(order, CROSSOVER)
    coefficients = np.zeros(3 * _TERMS)
    for k, polynomial in enumerate(_logarithmic(), 1):
        for power, a in polynomial.items():
            coefficients[power - 1] += float(a) * (order / start) ** (power - k) / start**k
    offset = 0.0
    if order < CROSSOVER:
        stirling = math.lgamma(order + 1) + order - (order * math.log(order) if order else 0.0)
        offset = 0.5 * math.log(2 * math.pi * start) - coefficients.sum() - stirling
    powers = np.arange(1, len(coefficients) + 1)
    remainder = np.cumsum(coefficients[::-1])[::-1].copy()
    return Debye(start, float(offset), powers * coefficients, powers**2 * coefficients, remainder)


@cache
def series(m: int) -> np.ndarray:
    """Coefficients (J,) of (κ / `CROSSOVER`)^2j, j = 1, 2, …: the power series above without its leading 1."""
    order, term, found = m / 2 - 1, 1.0, []
    for j in range(1, _SERIES + 1):
        term *= CROSSOVER**2 / 4 / (j * (order + j))
        found.append(term)
    return np.array(found)


@cache
def _logarithmic() -> list[_Polynomial]:
    """D_1, D_2, …, power → coefficient: Σ_k D_k(p) / ν^k is the logarithm of Debye's Σ_k u_k(p) / ν^k."""
    debye_u = [{0: Fraction(1)}]
    for _ in range(_TERMS):
        following: _Polynomial = defaultdict(Fraction)
        for power, a in debye_u[-1].items():
            following[power + 1] += a * power / 2 + a / (8 * (power + 1))
            following[power + 3] -= a * power / 2 + 5 * a / (8 * (power + 3))
        debye_u.append(following)
    logarithmic: list[_Polynomial] = []
    for n in range(1, _TERMS + 1):
        found: _Polynomial = defaultdict(Fraction, debye_u[n])
        for k, polynomial in enumerate(logarithmic, 1):
            for power, a in polynomial.items():
                for other, u in debye_u[n - k].items():
                    found[power + other] -= Fraction(k, n) * a * u
        logarithmic.append(found)
    return logarithmic
