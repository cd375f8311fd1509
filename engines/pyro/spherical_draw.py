"""Draws on the sphere around a mean direction μ, reparameterised in μ and in the concentration κ.

With θ the angle between a draw and μ, p(θ) ∝ exp(h(θ)), h = κ T(cos θ) + (m − 2) log sin θ (T and L as in
`spherical_moments`), the implicit gradient (Figurnov et al. 2018) is dθ/dκ = −∂_κ F(θ) / p(θ), F the distribution function:

    dθ/dκ = −∫_0^θ (T(s) + L'(κ)) exp(h(s) − h(θ)) ds = ∫_θ^π (T(s) + L'(κ)) exp(h(s) − h(θ)) ds

Unlike the gradient along the accepted proposal alone (Davidson et al. 2018 without their correction) it is unbiased.
The integral runs over the tail in which θ lies, as far as the integrand reaches, and is formed in the backward pass. Its
variable is x = log(tan²(s/2) / tan²(θ/2)): the tails are then smooth for every m, and no trigonometry is left. The power
spherical has a shorter way, unbiased as well, through one of the two Gamma draws that make θ.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..quadrature import REACH, tail_rule

PROPOSALS = 5
"""Drawn at once for each angle: at most a rejection in three, so that one angle in 240 needs a second block."""

_NEGLIGIBLE = -80.0  # exponents below turn float32 denormal, and slow


class Family(NamedTuple):
    """How θ is drawn, and its implicit gradient.

    propose: (m, κ, |n|²) to sin²(θ/2) and cos²(θ/2), all in the shape of |n|² but κ, which broadcasts to it; n is the standard
        normal in R^{m−1} whose direction turns the draw around μ.
    implicit: (m, κ, L'(κ), sin²(θ/2), cos²(θ/2), |n|) to dθ/dκ.
    """

    propose: Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]]
    implicit: Callable[[int, Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def draw(family: Family, loc: Tensor, concentration: Tensor, slope: Tensor, shape: torch.Size) -> Tensor:
    """z of shape (…, m), of unit norm, with gradients in loc (…, m) and in concentration (…), which broadcast to it.

    slope: L'(κ), of the shape of κ. z is (cos θ, sin θ · n / |n|), reflected from −e₁ to μ, or from e₁ to μ where
    μ₁ < 0: never by a short vector.
    """
    return _Draw.apply(loc, concentration, slope, loc.new_empty(shape).normal_(), family)


class _Draw(torch.autograd.Function):
    """With u = n / |n| of n in 0 × R^{m−1}, e = ±e₁ with the sign of μ₁, and a = sin θ · μᵀu / (1 + |μ₁|):
    z = (cos θ − a) μ + sin θ · u − a e.
    """

    @staticmethod
    def forward(ctx: Any, loc: Tensor, concentration: Tensor, slope: Tensor, normal: Tensor, family: Family) -> Tensor:
        normal[..., 0] = 0
        square = normal.square().sum(-1)
        sine2, cosine2 = family.propose(loc.shape[-1], concentration, square)
        cosine, sine = cosine2 - sine2, (sine2 * cosine2).sqrt_().mul_(2)
        first = loc[..., 0]
        inner = (normal * loc).sum(-1).div_(first.abs() + 1)
        scale = sine / square.sqrt_()
        a = scale * inner
        ctx.family = family
        ctx.save_for_backward(loc, concentration, slope, normal, square, sine2, cosine2, cosine, sine, inner)
        z = torch.addcmul(normal * scale.unsqueeze(-1), loc, (cosine - a).unsqueeze(-1))
        z[..., 0] -= a.copysign(first * a)
        return z

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        loc, concentration, slope, normal, norm, sine2, cosine2, cosine, sine, inner = ctx.saved_tensors
        first = loc[..., 0]
        by_cosine = (upstream * loc).sum(-1)
        by_a = by_cosine + upstream[..., 0].copysign(upstream[..., 0] * first)  # its negative
        by_loc = by_concentration = None
        scale = sine / norm
        if ctx.needs_input_grad[0]:
            a, share = scale * inner, by_a * scale / (first.abs() + 1)
            by_loc = torch.addcmul(upstream * (cosine - a).unsqueeze(-1), normal, share.unsqueeze(-1), value=-1)
            by_loc[..., 0] += (share * inner).copysign(share * inner * first)
            by_loc = by_loc.sum_to_size(loc.shape)
        if ctx.needs_input_grad[1]:
            by_sine = ((upstream * normal).sum(-1) - by_a * inner) / norm
            implicit = ctx.family.implicit(loc.shape[-1], concentration, slope, sine2, cosine2, norm)
            by_concentration = ((by_sine * cosine - by_cosine * sine) * implicit).sum_to_size(concentration.shape)
        return by_loc, by_concentration, None, None, None


@cache
def _rule(m: int, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    return [torch.as_tensor(each, dtype=dtype, device=device) for each in tail_rule(m)]


def _propose_von_mises_fisher(m: int, concentration: Tensor, square: Tensor) -> tuple[Tensor, Tensor]:
    """Wood's rejection (1994), in a form in which nothing cancels; for m = 3 the inverse of the distribution function."""
    return _inverse(concentration, square.shape) if m == 3 else _wood(m, concentration, square.shape)


def _inverse(concentration: Tensor, shape: torch.Size) -> tuple[Tensor, Tensor]:
    """m = 3: 1 − cos θ = −log(1 − u (1 − exp(−2κ))) / κ."""
    u = torch.rand(shape, dtype=concentration.dtype, device=concentration.device)
    sine = ((u * (-2 * concentration).expm1()).log1p() / (-2 * concentration)).clamp(max=1)
    return sine, 1 - sine


def _wood(m: int, concentration: Tensor, shape: torch.Size) -> tuple[Tensor, Tensor]:
    b = (m - 1) / (2 * concentration + ((2 * concentration).square() + (m - 1) ** 2).sqrt())
    b = b.expand(shape).reshape(-1)
    sine, cosine, accepted = _first_accepted(m, b)
    while not accepted.all():
        rest = (~accepted).nonzero().squeeze(-1)
        sine[rest], cosine[rest], accepted[rest] = _first_accepted(m, b[rest])
    return sine.view(shape), cosine.view(shape)


def _first_accepted(m: int, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """sin²(θ/2), cos²(θ/2) of the first accepted proposal of each b (N,), and whether there is one.

    A proposal is tan²(θ/2) = b (1 + x) / (1 − x), where (1 + x) / 2 is Beta((m − 1) / 2, (m − 1) / 2) by Ulrich's (1984)
    x = √(1 − u^{2/(m−2)}) cos 2πv; it is accepted with probability (y exp(1 − y))^{m−1}, y = (1 + b) / (1 − x + b (1 + x)).
    """
    u, v, level = torch.rand(3, PROPOSALS, len(b), dtype=b.dtype, device=b.device)
    left = u.pow_(2 / (m - 2)) if m > 2 else torch.zeros_like(u)
    radius = (1 - left).sqrt()
    turn = v.mul_(math.pi / 2).sin_().square_().mul_(2)
    below = left / (1 + radius) + radius * turn  # 1 − x
    scaled = (2 - below) * b
    total = below + scaled
    y = (1 + b) / total
    accepted = (y.log() + 1 - y) * (m - 1) >= level.log_()
    found, first = accepted.max(0, keepdim=True)
    scaled, below, total = (part.gather(0, first).squeeze(0) for part in (scaled, below, total))
    return scaled / total, below / total, found.squeeze(0)


def _implicit_von_mises_fisher(
    m: int, concentration: Tensor, slope: Tensor, sine2: Tensor, cosine2: Tensor, norm: Tensor
) -> Tensor:
    """By quadrature over the tail."""
    half = (m - 1) / 2
    root = (concentration.square() + half**2).sqrt()
    curvature = half * root / (half + root)  # of −log p(x) at its mode
    beyond = (REACH - 2 * concentration).clamp(min=0) / half  # the tail towards π is longer than that says
    score = slope - 2 * sine2
    inner = score > 0  # nearer to μ than the mean of T
    distance = (cosine2 - sine2) * half - 2 * concentration * sine2 * (1 - sine2)
    distance = distance.abs_().div_(curvature)  # about, from the mode
    square = 2 * REACH / curvature + beyond.where(~inner, REACH / half).square()
    reach = square / ((distance.square() + square).sqrt_() + distance)
    nodes, weights = _rule(m, sine2.dtype, sine2.device)
    x = reach.where(~inner, -reach).unsqueeze(-1) * nodes
    q = x.expm1().mul_(sine2.unsqueeze(-1))
    log = q.log1p()
    shift = (q / (1 + q)).mul_(cosine2.unsqueeze(-1)).mul_(-2)  # T(s) − T(θ)
    exponent = x.sub_(log, alpha=2).mul_(half).add_(shift * concentration.unsqueeze(-1))
    density = exponent.clamp_(min=_NEGLIGIBLE).exp_()
    integral = shift.add_(score.unsqueeze(-1)).abs_().mul_(density).mul_(weights).sum(-1)
    return (sine2 * cosine2).sqrt_().mul_(reach).mul_(integral).neg_()


def _propose_power_spherical(m: int, concentration: Tensor, square: Tensor) -> tuple[Tensor, Tensor]:
    """(1 + cos θ) / 2 is Beta((m − 1) / 2 + κ, (m − 1) / 2), and |n|² / 2 is Gamma((m − 1) / 2), whatever n's direction."""
    far = square / 2
    near = torch._standard_gamma((concentration + (m - 1) / 2).expand(square.shape))
    total = near + far
    return far / total, near / total


def _implicit_power_spherical(
    m: int, concentration: Tensor, slope: Tensor, sine2: Tensor, cosine2: Tensor, norm: Tensor
) -> Tensor:
    """Through the Gamma draw alone, by PyTorch's own gradient of it, which is exact to 1e-3 a draw and 5e-5 on average."""
    near = norm.square().mul_(cosine2).div_(sine2).mul_(0.5)
    gradient = torch._standard_gamma_grad(concentration + (m - 1) / 2, near)
    return (sine2 * cosine2).sqrt_().mul_(gradient).div_(near).neg_()


VON_MISES_FISHER = Family(_propose_von_mises_fisher, _implicit_von_mises_fisher)
POWER_SPHERICAL = Family(_propose_power_spherical, _implicit_power_spherical)
