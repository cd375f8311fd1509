"""The law of a pen's step, on Pyro.

log p(pen, dx, dy) = log Bernoulli(pen; sigmoid(a)) + log Σ_k π_k N(dx, dy; m_k, s_k, ρ_k)
−log N = log 2π + log s_1 + log s_2 + ½ log(1 − ρ²) + ½ u² + ½ (v − ρ u)² / (1 − ρ²),   (u, v) = ((dx, dy) − m) / s
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.nn import functional as F


class PenStrokes(TorchDistribution):
    """(pen, dx, dy), event shape (3,).

    Args:
        pen: a (…).
        logits: log π up to a constant (…, K).
        loc, scale: m and s (…, K, 2).
        correlation: ρ (…, K), inside (−1, 1).
    """

    arg_constraints: Mapping[str, Any] = {}
    support: Any = constraints.real_vector

    def __init__(self, pen: Tensor, logits: Tensor, loc: Tensor, scale: Tensor, correlation: Tensor) -> None:
        self.pen, self.logits, self.loc, self.scale, self.correlation = pen, logits, loc, scale, correlation
        super().__init__(pen.shape, torch.Size((3,)), validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> PenStrokes:
        parts = self.pen, self.logits, self.loc, self.scale, self.correlation
        own = len(self.batch_shape)
        return PenStrokes(*(part.expand(*batch_shape, *part.shape[own:]) for part in parts))

    def log_prob(self, value: Tensor) -> Tensor:
        pen, moves = value[..., 0], value[..., None, 1:]
        u, v = ((moves - self.loc) / self.scale).unbind(-1)
        rest = 1 - self.correlation.square()
        square = u.square() + (v - self.correlation * u).square() / rest
        log_normal = -0.5 * (square + rest.log()) - self.scale.log().sum(-1) - math.log(2 * math.pi)
        log_moves = (self.logits.log_softmax(-1) + log_normal).logsumexp(-1)
        return log_moves - F.softplus(torch.where(pen > 0.5, -self.pen, self.pen))

    def sample(self, sample_shape: Any = ()) -> Tensor:
        shape = (*sample_shape, *self.batch_shape)
        with torch.no_grad():
            pen = torch.bernoulli(self.pen.sigmoid().expand(shape))
            probabilities = self.logits.softmax(-1).expand(*shape, -1)
            k = torch.multinomial(probabilities.reshape(-1, probabilities.shape[-1]), 1).reshape(*shape, 1)
            correlation = self.correlation.expand(*shape, -1).gather(-1, k).squeeze(-1)
            chosen = k.unsqueeze(-1).expand(*shape, 1, 2)
            loc, scale = (part.expand(*shape, -1, 2).gather(-2, chosen).squeeze(-2) for part in (self.loc, self.scale))
            u, noise = torch.randn_like(loc).unbind(-1)
            v = correlation * u + (1 - correlation.square()).sqrt() * noise
            return torch.cat((pen.unsqueeze(-1), loc + scale * torch.stack((u, v), -1)), -1)
