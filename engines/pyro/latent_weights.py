"""Weights of a network as latents on Pyro."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyro.distributions as dist
import torch
from torch import Tensor

from ...models import latent_weights
from ...models.spec import Network
from .mlp import activation
from .module import Realised


class LatentMLP(Realised):
    """mlp(x (…, inputs), weights) is (…, outputs); with particles, weights are (S, 1, …) and x (S, B, inputs)."""

    def forward(self, x: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
        activate = activation(self.spec.activation)
        for layer in range(len(self.spec.hidden) + 1):
            if layer:
                x = activate(x)
            weight = weights[f"weight_{layer}"]
            weight = weight.squeeze(-3) if weight.dim() > 2 else weight
            x = x @ weight.mT + weights[f"bias_{layer}"]
        return activate(x) if self.spec.activate_outputs else x


class WeightPrior(Realised):
    """prior() is name → Normal, the whole array its event."""

    zero: Tensor

    def __init__(self, network: Network, weights: Mapping[str, np.ndarray], dtype: torch.dtype, precision: str) -> None:
        super().__init__(network, weights, dtype, precision)
        self.register_buffer("zero", torch.zeros((), dtype=dtype), persistent=False)

    def forward(self) -> dict[str, dist.TorchDistribution]:
        shapes = self.spec.network.shapes(**self.sizes)
        scale = self.zero + self.spec.scale
        return {
            name: dist.Normal(self.zero.expand(start.shape), scale, validate_args=False).to_event(len(start.shape))
            for name, start in shapes.items()
        }


class WeightPosterior(Realised):
    """posterior() is name → Normal, the whole array its event."""

    def forward(self) -> dict[str, dist.TorchDistribution]:
        found = {}
        for name, start in self.spec.network.shapes(**self.sizes).items():
            loc, log_scale = (self.get_parameter(f"{name}_{part}") for part in ("loc", "log_scale"))
            scale = self.spec.initial_scale * log_scale.exp()
            found[name] = dist.Normal(loc, scale, validate_args=False).to_event(len(start.shape))
        return found


LATENT_WEIGHTS: dict[type, type[Realised]] = {
    latent_weights.LatentMLP: LatentMLP,
    latent_weights.WeightPrior: WeightPrior,
    latent_weights.WeightPosterior: WeightPosterior,
}
