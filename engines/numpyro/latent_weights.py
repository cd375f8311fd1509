"""Weights of a network as latents on NumPyro."""

from __future__ import annotations

from collections.abc import Mapping

import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array
from jax.lax import Precision

from ...models import latent_weights
from .mlp import activation
from .module import Realised


class LatentMLP(Realised):
    """mlp(x (…, inputs), weights) is (…, outputs); with particles, weights are (S, 1, …) and x (S, B, inputs)."""

    def __call__(self, x: Array, weights: Mapping[str, Array]) -> Array:
        activate = activation(self.spec.activation)
        for layer in range(len(self.spec.hidden) + 1):
            if layer:
                x = activate(x)
            weight = weights[f"weight_{layer}"]
            weight = weight.squeeze(-3) if weight.ndim > 2 else weight
            x = jnp.matmul(x, weight.mT, precision=Precision.HIGHEST) + weights[f"bias_{layer}"]
        return activate(x) if self.spec.activate_outputs else x


class WeightPrior(Realised):
    """prior() is name → Normal, the whole array its event."""

    def __call__(self) -> dict[str, dist.Distribution]:
        shapes = self.spec.network.shapes(**dict(self.sizes))
        return {
            name: dist.Normal(0.0, self.spec.scale).expand(start.shape).to_event(len(start.shape))
            for name, start in shapes.items()
        }


class WeightPosterior(Realised):
    """posterior() is name → Normal, the whole array its event."""

    def __call__(self) -> dict[str, dist.Distribution]:
        found = {}
        for name, start in self.spec.network.shapes(**dict(self.sizes)).items():
            loc, log_scale = (self.weights[f"{name}_{part}"] for part in ("loc", "log_scale"))
            scale = self.spec.initial_scale * jnp.exp(log_scale)
            found[name] = dist.Normal(loc, scale).to_event(len(start.shape))
        return found


LATENT_WEIGHTS: dict[type, type[Realised]] = {
    latent_weights.LatentMLP: LatentMLP,
    latent_weights.WeightPrior: WeightPrior,
    latent_weights.WeightPosterior: WeightPosterior,
}
