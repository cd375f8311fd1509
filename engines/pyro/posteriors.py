"""Posterior families q(z | x) on Pyro: posterior(h) is a distribution over the latents of the rows of h."""

from __future__ import annotations

import pyro.distributions as dist
from torch import Tensor
from torch.nn import functional as F

from ...guides import posteriors
from .module import Realised


class DiagonalNormal(Realised):
    """q(z | x): posterior(h (B, H)) is a Normal of event shape (Z,). log σ² is not clamped."""

    weight: Tensor

    def forward(self, h: Tensor) -> dist.TorchDistribution:
        loc, log_variance = F.linear(h, self.weight).chunk(2, -1)
        return dist.Normal(loc, (0.5 * log_variance).exp(), validate_args=False).to_event(1)


POSTERIORS: dict[type, type[Realised]] = {posteriors.DiagonalNormal: DiagonalNormal}
