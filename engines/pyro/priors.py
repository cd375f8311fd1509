"""Priors p(z) on Pyro: prior() is a distribution over one datum's latent."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from ...models import priors
from ...models.spec import Network
from .module import Realised


class StandardNormal(Realised):
    """p(z) = N(0, I): prior() is a Normal of event shape (Z,)."""

    zero: Tensor

    def __init__(self, network: Network, weights: Any, dtype: torch.dtype, precision: str) -> None:
        super().__init__(network, weights, dtype, precision)
        self.register_buffer("zero", torch.zeros(network.spec.dim, dtype=dtype), persistent=False)

    def forward(self) -> dist.TorchDistribution:
        return dist.Normal(self.zero, torch.ones_like(self.zero), validate_args=False).to_event(1)


PRIORS: dict[type, type[Realised]] = {priors.StandardNormal: StandardNormal}
