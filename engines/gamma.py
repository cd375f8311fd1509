"""What Stirling's series leave of log Γ and its derivatives, for y ≥ 8 (DLMF 5.11.1 and 5.11.2).

log Γ(y) = (y − ½) log y − y + ½ log 2π + Σ_k B_2k / (2k (2k − 1)) y^(1−2k)
ψ(y)     = log y − 1 / 2y − Σ_k B_2k / 2k y^−2k
ψ'(y)    = 1 / y + 1 / 2y² + Σ_k B_2k y^(−2k−1)
"""

from __future__ import annotations

import numpy as np

SHIFTED = 8
"""Smallest y at which six terms are exact to 1e-13."""

_BERNOULLI = (1 / 6, -1 / 30, 1 / 42, -1 / 30, 5 / 66, -691 / 2730)  # B_2, B_4, …


def tails(smallest: float) -> np.ndarray:
    """Coefficients (D, 3) of y^−1, …, y^−D in the sums above, of log Γ, ψ and ψ', as many as y ≥ `smallest` needs."""
    terms = 3 if smallest >= 3 * SHIFTED else len(_BERNOULLI)
    found = np.zeros((2 * terms + 1, 3))
    for k, b in enumerate(_BERNOULLI[:terms], 1):
        found[2 * k - 2, 0] = b / (2 * k * (2 * k - 1))
        found[2 * k - 1, 1] = b / (2 * k)
        found[2 * k, 2] = b
    return found


def log_gamma_difference(start: float, end: float) -> float:
    """The sum of log Γ at `end`, less that at `start`; `SHIFTED` ≤ start < end."""
    coefficients = tails(start)[:, 0]
    powers = -np.arange(1.0, len(coefficients) + 1)
    return float(coefficients @ (end**powers - start**powers))
