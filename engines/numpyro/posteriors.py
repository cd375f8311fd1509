"""Posterior families q(z | x) on NumPyro: posterior(h) is a distribution over the latents of the rows of h."""

from __future__ import annotations

import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array

from ...guides import posteriors
from .module import Realised
from .precision import product


class DiagonalNormal(Realised):
    """q(z | x): posterior(h (B, H)) is a Normal of event shape (Z,). log σ² is not clamped."""

    def __call__(self, h: Array, *, key: Array | None = None) -> dist.Distribution:
        loc, log_variance = jnp.split(product(h, self.weights["weight"]), 2, axis=-1)
        return dist.Normal(loc, jnp.exp(0.5 * log_variance)).to_event(1)


POSTERIORS: dict[type, type[Realised]] = {posteriors.DiagonalNormal: DiagonalNormal}
