"""Mixtures of normals with diagonal covariances: their density, and draws reparameterised in all parameters, the weights too.

A draw moves with its parameters as a velocity v says that keeps ∂q + div(q v) = 0 for the density q = Σ_i w_i q_i
(Jankowiak & Karaletsos 2018): the gradient is then unbiased. In location and scale, v is that of each component,
weighted by its responsibility w_i q_i / q. In the weights, whose changes sum to zero, a component is taken apart to a
common normal r, one coordinate after the other:

    q_i − r = Σ_d ∂_d [(Φ_i − Φ_r)(z_d) Π_{e<d} q_i(z_e) Π_{e>d} r(z_e)]

so that minus the bracket over q is the velocity of coordinate d for each unit of w_i. r has the mixture's mean and the
smallest scales: then no tail of it outweighs q's. The variance grows exponentially in the squared distance of components.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .dirichlet import MASKED

_APART = 1e9
"""Squared distances, in variances, up to which float64 holds them as differences of products."""


def log_density(log_weight: Tensor, loc: Tensor, scale: Tensor, z: Tensor) -> Tensor:
    """log Σ_i w_i N(z; μ_i, diag σ_i²) (…, K) at z (…, K, p), from log w (…, M), normalised, μ and σ (…, M, p).

    By one product over all components, or one after the other where a scale is so small that what it subtracts is too large.
    """
    exact, loc, scale = z.double(), loc.double(), scale.double()
    precision = scale.square().reciprocal()
    farthest = torch.maximum(exact.detach().abs().amax(), loc.detach().abs().amax())
    if float(precision.detach().amax() * farthest.square()) < _APART:
        leaning = loc * precision
        far = torch.cat((exact.square(), exact), -1) @ torch.cat((precision, -2 * leaning), -1).mT
        far = far + (loc * leaning).sum(-1).unsqueeze(-2)
    else:
        components = zip(*(x.unsqueeze(-2).unbind(-3) for x in (loc, scale)), strict=True)
        far = torch.stack([((exact - mean) / deviation).square().sum(-1) for mean, deviation in components], -1)
    volume = scale.log().sum(-1) + 0.5 * scale.shape[-1] * math.log(2 * math.pi)
    return (log_weight.unsqueeze(-2) - volume.unsqueeze(-2) - 0.5 * far).logsumexp(-1).to(z.dtype)


def components_drawn(log_weight: Tensor, shape: torch.Size) -> Tensor:
    """Independent draws i with probability exp(log_weight_i), of `shape` (…, K), from log_weight (…, M), normalised.

    By the inverse of the distribution function, in float64: M + K log M steps, where comparing M waiting times for each
    draw takes K M.
    """
    steps = log_weight.double().exp().cumsum(-1)
    waiting = 1 - torch.rand(shape, dtype=steps.dtype, device=steps.device)  # above 0, so that no empty step is met
    return torch.searchsorted(steps.expand(*shape[:-1], -1).contiguous(), waiting * steps[..., -1:])


def reparameterised(log_weight: Tensor, loc: Tensor, scale: Tensor, noise: Tensor) -> Tensor:
    """z (…, K, p), K independent draws for each mixture, with gradients in everything but the noise.

    log_weight: (…, M), normalised, `MASKED` where there is no component. loc, scale: (…, M, p). noise: standard normal, sample shape + (…, K, p).
    """
    weight = log_weight.exp()
    with torch.no_grad():
        shape = noise.shape[:-1]
        chosen = components_drawn(log_weight, shape)
        index = chosen.unsqueeze(-1).expand(noise.shape)
        whole = (*shape[:-1], *loc.shape[-2:])
        z = loc.expand(whole).gather(-2, index) + scale.expand(whole).gather(-2, index) * noise
        residual, responsibility, flux = _velocity(log_weight, loc, scale, z)
    return (
        z
        + responsibility @ (loc - loc.detach())
        + ((responsibility.unsqueeze(-1) * residual) * (scale - scale.detach()).unsqueeze(-3)).sum(-2)
        + (flux * (weight - weight.detach())[..., None, :, None]).sum(-2)
    )


def _velocity(log_weight: Tensor, loc: Tensor, scale: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(z − μ_i) / σ_i (…, K, M, p), w_i q_i / q (…, K, M) and the velocity for each unit of w_i (…, K, M, p)."""
    centre = (log_weight.exp().unsqueeze(-1) * loc).sum(-2, keepdim=True).unsqueeze(-3)
    real = (log_weight > MASKED).unsqueeze(-1)
    narrow = scale.where(real, math.inf).amin(-2, keepdim=True).unsqueeze(-3)
    residual, log_q = _standardised(z.unsqueeze(-2), loc.unsqueeze(-3), scale.unsqueeze(-3))
    standard, log_r = _standardised(z.unsqueeze(-2), centre, narrow)
    joint = log_weight.unsqueeze(-2) + log_q.sum(-1)
    log_mixture = joint.logsumexp(-1, keepdim=True)
    between = _before(log_q) + _before(log_r.flip(-1)).flip(-1)
    side = torch.where(standard > 0, -1.0, 1.0)  # of r: its nearer tail holds the digits
    gap = (torch.special.ndtr(side * residual) - torch.special.ndtr(side * standard)) * side
    largest = 0.9 * math.log(torch.finfo(gap.dtype).max)  # for 0 times it is added to the draw
    flux = -gap.sign() * (gap.abs().log() + between - log_mixture.unsqueeze(-1)).clamp(max=largest).exp()
    return residual, (joint - log_mixture).exp(), flux.where(real.unsqueeze(-3), 0)


def _before(x: Tensor) -> Tensor:
    """Σ_{e<d} x_e: not what is left of a sum, since single densities can be −∞."""
    return torch.nn.functional.pad(x[..., :-1].cumsum(-1), (1, 0))


def _standardised(z: Tensor, loc: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """(z − μ) / σ and the log-density of each coordinate."""
    residual = (z - loc) / scale
    return residual, -0.5 * (residual.square() + math.log(2 * math.pi)) - scale.log()
