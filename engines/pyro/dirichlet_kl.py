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

import numpy as np
import torch
from torch import Tensor

from ..gamma import SHIFTED, tails


def gamma_kl(log_a: Tensor, log_b: Tensor) -> Tensor:
    """KL(Gamma(a, 1)‖Gamma(b, 1)) in nats, (…). Grows like a where a ≫ b."""
    return poisson_kl(log_a, log_b) + beyond_poisson(log_a, log_b)


def dirichlet_kl(log_total_posterior: Tensor, log_total_prior: Tensor, atoms: Tensor | float) -> Tensor:
    """KL(Dir(A/K, …, A/K)‖Dir(B/K, …, B/K)) for K `atoms`, in nats, from log A and log B; all (…).

    The L_D of the nonparametric variational bottleneck (Henderson & Fehr 2023): it grows like (K − 1)/2 log A with A,
    and like K (log(A/B) − 1 + B/A) with K.
    """
    atoms = torch.as_tensor(atoms, dtype=log_total_posterior.dtype, device=log_total_posterior.device)
    share = torch.stack((atoms.log(), torch.zeros_like(atoms)))  # both terms in one: the operations are many and small
    share = share.view(2, *[1] * (log_total_posterior.dim() - atoms.dim()), *atoms.shape)
    each, total = beyond_poisson(log_total_posterior - share, log_total_prior - share)
    return atoms * each - total


def poisson_kl(log_a: Tensor, log_b: Tensor) -> Tensor:
    """KL(Poisson(b)‖Poisson(a)) = b log(b/a) − (b − a) in nats, (…), with second-order errors where b ≈ a."""
    ratio, a, b = log_b - log_a, log_a.exp(), log_b.exp()
    near = ratio.abs() < 1
    change = (a * ratio.where(near, 0).expm1()).where(near, b - a)
    return b * ratio - change


def beyond_poisson(log_a: Tensor, log_b: Tensor) -> Tensor:
    """G(a, b), the share of the KL of two Gammas that is not of two Poissons, (…)."""
    excess, slope = log_gamma_excess(torch.stack(torch.broadcast_tensors(log_a, log_b)))
    return excess[1] - excess[0] - (log_b - log_a).expm1() * slope[0]


def log_gamma_excess(log_y: Tensor) -> tuple[Tensor, Tensor]:
    """φ(y) and y φ'(y), each (…)."""
    small = log_y < math.log(SHIFTED)
    log, large = log_y.where(small, 0), log_y.where(~small, math.log(SHIFTED))
    y, inverse = log.exp(), (-large).exp()
    of_log_gamma, of_digamma = _tail(tails(SHIFTED)[::2, 0], inverse), _tail(tails(SHIFTED)[1::2, 1], inverse)
    constant = 0.5 * math.log(2 * math.pi)
    excess = ((1 + y).lgamma() - log - y * log + y).where(small, constant - 0.5 * large + of_log_gamma)
    slope = (y * ((1 + y).digamma() - log) - 1).where(small, -0.5 - of_digamma)
    return excess, slope


def _tail(coefficients: np.ndarray, inverse: Tensor) -> Tensor:
    """Σ_k coefficients[k] inverse^(2k + 1)."""
    square, found = inverse.square(), torch.zeros_like(inverse)
    for coefficient in coefficients[::-1]:
        found = found * square + float(coefficient)
    return found * inverse
