"""Two families on the sphere S^{m−1} ⊂ R^m as functions of their concentration κ alone, on the device, without SciPy.

Both are p(z) = exp(L(κ) + κ T(μᵀz)) / |S^{m−1}| with T ≤ 0, and T = 0 at z = μ:

- von Mises-Fisher, T(w) = w − 1 (Davidson et al. 2018);
- power spherical, T(w) = log((1 + w) / 2) (De Cao & Aziz 2020, equation 5).

Hence E[T] = −L'(κ), and the KL to the uniform is L − κ L', with derivative −κ L''. In this form nothing cancels:
float32 keeps its digits up to κ = 1e5. The gradients are these formulas, not those of their expansions.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..bessel import CROSSOVER, debye, series
from ..gamma import SHIFTED, log_gamma_difference, tails


class Moments(NamedTuple):
    """Each of the shape and dtype of κ.

    log_peak: L, the log-density at μ against the uniform. slope: L' > 0. kl: to the uniform, in nats.
    mean_resultant: E[μᵀz]. The gradient in κ reaches all but `slope`.
    """

    log_peak: Tensor
    slope: Tensor
    kl: Tensor
    mean_resultant: Tensor


def von_mises_fisher(m: int, concentration: Tensor) -> Moments:
    """Of the von Mises-Fisher distribution on the sphere in R^m; relative errors below 1e-9 in float64, for m ≥ 2."""
    return Moments(*_VonMisesFisher.apply(concentration, m))


def power_spherical(m: int, concentration: Tensor) -> Moments:
    """Of the power spherical distribution on the sphere in R^m; relative errors below 1e-9 in float64, for m ≥ 2."""
    log_peak, slope, kl = _PowerSpherical.apply(concentration, m)
    return Moments(log_peak, slope, kl, concentration / (concentration + (m - 1)))


class _VonMisesFisher(torch.autograd.Function):
    """κ (…) to L, L' = 1 − A, KL and A = I_{m/2}(κ) / I_{m/2−1}(κ)."""

    @staticmethod
    def forward(ctx: Any, concentration: Tensor, m: int) -> tuple[Tensor, ...]:
        if m / 2 - 1 >= CROSSOVER:
            found = _debye(m, concentration)
        else:
            low, high = _series(m, concentration.clamp(max=CROSSOVER)), _debye(m, concentration.clamp(min=CROSSOVER))
            found = [torch.where(concentration < CROSSOVER, *both) for both in zip(low, high, strict=True)]
        resultant, slope, derivative, kl = found
        ctx.save_for_backward(concentration, slope, derivative)
        ctx.mark_non_differentiable(slope)
        ctx.set_materialize_grads(False)
        return kl + concentration * slope, slope, kl, resultant

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, log_peak: Tensor | None, _: None, kl: Tensor | None, resultant: Tensor | None
    ) -> tuple[Tensor | None, None]:
        concentration, slope, derivative = ctx.saved_tensors
        return _sum((log_peak, slope), (kl, concentration * derivative), (resultant, derivative)), None


def _debye(m: int, concentration: Tensor) -> tuple[Tensor, ...]:
    """A, 1 − A, A' and the KL by Debye's expansion, `engines.bessel`."""
    order, (start, offset, *_) = m / 2 - 1, debye(m)
    first, second, remainder = _coefficients(m, concentration.dtype, concentration.device)
    s = (concentration.square() + order**2).sqrt()
    cosine = concentration / s
    powers = _powers(start / s, first.numel())
    bend = (powers * first).sum(-1) + 0.5
    rest = (powers[..., :-1] * remainder[1:]).sum(-1) + remainder[0]
    gap, correction = s + order, cosine * bend / s
    resultant = concentration / gap - correction
    deficit = order * (order / (s + concentration) + 1) / gap + correction
    square = cosine.square()
    curvature = bend * (1 - 2 * square) - square * (powers * second).sum(-1)
    derivative = (order / gap - curvature / s) / s
    excess = (concentration.square() - (start**2 - order**2)) / (s + start)
    kl = 0.5 * (excess / start).log1p() - square * bend + excess / s * rest + offset
    if order:
        kl = kl + order * (concentration.square() / (2 * order * gap)).log1p()
    return resultant, deficit, derivative, kl


def _series(m: int, concentration: Tensor) -> tuple[Tensor, ...]:
    """A, 1 − A, A' and the KL for κ ≤ `CROSSOVER`: j is distributed as the terms of the power series, κA = 2 E[j]."""
    concentration = concentration.clamp(min=1e-12)  # whose square float32 still holds
    coefficients, j = _series_coefficients(m, concentration.dtype, concentration.device)
    terms = _powers((concentration / CROSSOVER).square(), j.numel()) * coefficients
    others = terms.sum(-1)
    mean = (terms * j).sum(-1) / (1 + others)
    variance = ((terms * (j - mean.unsqueeze(-1)).square()).sum(-1) + mean.square()) / (1 + others)
    resultant = 2 * mean / concentration
    derivative = (4 * variance - 2 * mean) / concentration.square()
    return resultant, 1 - resultant, derivative, 2 * mean - others.log1p()


def _powers(x: Tensor, count: int) -> Tensor:
    """x, x², … along a new last dimension."""
    return x.unsqueeze(-1).expand(*x.shape, count).cumprod(-1)


@cache
def _coefficients(m: int, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    return [torch.as_tensor(each, dtype=dtype, device=device) for each in debye(m)[2:]]


@cache
def _series_coefficients(m: int, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    found = series(m)
    return [torch.as_tensor(each, dtype=dtype, device=device) for each in (found, np.arange(1, len(found) + 1))]


class _PowerSpherical(torch.autograd.Function):
    """κ (…) to L, L' = ψ(m − 1 + κ) − ψ((m − 1) / 2 + κ) and KL."""

    @staticmethod
    def forward(ctx: Any, concentration: Tensor, m: int) -> tuple[Tensor, ...]:
        low = gap = (m - 1) / 2  # (1 + w) / 2 is Beta(low + κ, low)
        shift = max(0, math.ceil(SHIFTED - low))
        *columns, tail, offset = _stirling(low + shift, gap, concentration.dtype, concentration.device)
        at, scale = (column.view(2, *(1,) * concentration.dim()) for column in columns)
        inverse = (concentration + at).reciprocal()
        powers = _powers(inverse, len(tail))
        log_gamma, digamma, trigamma = ((powers[1] - powers[0]).unsqueeze(-1) * tail).sum(-2).unbind(-1)
        between = inverse.prod(0) * gap
        slope = (inverse[0] * gap).log1p_() + between.mul(0.5).sub_(digamma)
        curvature = (inverse.sum(0) * 0.5 + 1).mul_(between).sub_(trigamma)
        kl = (concentration / at).log1p_().mul_(scale).sum(0)
        kl += (digamma - 0.5 * between) * concentration + log_gamma - offset
        if shift:
            a = low + torch.arange(shift, dtype=kl.dtype, device=kl.device)
            x = concentration.unsqueeze(-1)
            inside = gap / ((a + x) * (a + gap + x))
            slope = slope + inside.sum(-1)
            curvature = curvature + (inside * ((a + x).reciprocal() + (a + gap + x).reciprocal())).sum(-1)
            kl = kl + ((x / a).log1p() - (x / (a + gap)).log1p() - x * inside).sum(-1)
        ctx.save_for_backward(concentration, slope, curvature)
        ctx.mark_non_differentiable(slope)
        ctx.set_materialize_grads(False)
        return kl + concentration * slope, slope, kl

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, log_peak: Tensor | None, _: None, kl: Tensor | None) -> tuple[Tensor | None, None]:
        concentration, slope, curvature = ctx.saved_tensors
        return _sum((log_peak, slope), (kl, concentration * curvature)), None


def _sum(*terms: tuple[Tensor | None, Tensor]) -> Tensor | None:
    """Σ upstream · derivative over the upstream gradients that there are."""
    found = [upstream * derivative for upstream, derivative in terms if upstream is not None]
    return sum(found[1:], found[0]) if found else None


@cache
def _stirling(start: float, gap: float, dtype: torch.dtype, device: torch.device) -> tuple[Any, ...]:
    """For y = start + κ and start + gap + κ: both at κ = 0; the factors of log(1 + κ / those); `tails`; their constant."""
    at = torch.tensor((start, start + gap), dtype=dtype, device=device)
    scale = torch.tensor((0.5 - start, start + gap - 0.5), dtype=dtype, device=device)
    tail = torch.as_tensor(tails(start), dtype=dtype, device=device)
    return at, scale, tail, log_gamma_difference(start, start + gap)
