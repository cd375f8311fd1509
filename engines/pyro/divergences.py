"""Closed forms of KL(q‖p) that PyTorch and Pyro lack, registered where stock ELBOs find them.

Between families of one dimension, and of Gaussians with any covariance from diagonal ones.
"""

from __future__ import annotations

import math

import pyro.distributions as dist
from torch import Tensor
from torch.distributions import Independent, LowRankMultivariateNormal, MultivariateNormal, Normal, register_kl


@register_kl(dist.Logistic, Normal)
def _logistic_normal(q: dist.Logistic, p: Normal) -> Tensor:
    """The entropy of a logistic is log s + 2, its variance (π s)² / 3."""
    squares = (math.pi * q.scale) ** 2 / 3 + (q.loc - p.loc) ** 2
    return squares / (2 * p.scale**2) + 0.5 * math.log(2 * math.pi) + p.scale.log() - q.scale.log() - 2


@register_kl(MultivariateNormal, Independent)
def _normal_diagonal(q: MultivariateNormal, p: Independent) -> Tensor:
    half_log_determinant = q.scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return _gaussian_diagonal(q, p, half_log_determinant)


@register_kl(LowRankMultivariateNormal, Independent)
def _low_rank_diagonal(q: LowRankMultivariateNormal, p: Independent) -> Tensor:
    """log det(F Fᵀ + D) = log det D + log det(I + Fᵀ D⁻¹ F), whose Cholesky factor q keeps."""
    capacitance = q._capacitance_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return _gaussian_diagonal(q, p, capacitance + 0.5 * q.cov_diag.log().sum(-1))


def _gaussian_diagonal(q: MultivariateNormal | LowRankMultivariateNormal, p: Independent, half: Tensor) -> Tensor:
    """half: half the log-determinant of q's covariance."""
    base = p.base_dist
    if not (isinstance(base, Normal) and p.reinterpreted_batch_ndims == 1):
        raise NotImplementedError
    squares = (q.variance + (q.loc - base.loc) ** 2) / base.scale**2
    return 0.5 * (squares - 1).sum(-1) + base.scale.log().sum(-1) - half
