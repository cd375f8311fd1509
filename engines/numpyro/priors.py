"""Priors p(z) on NumPyro: prior() is a distribution over one datum's latent."""

from __future__ import annotations

import numpyro.distributions as dist
from jax import Array

from ...models import priors
from .module import Realised


class StandardNormal(Realised):
    """p(z) = N(0, I): prior() is a Normal of event shape (Z,)."""

    def __call__(self, *, key: Array | None = None) -> dist.Distribution:
        return dist.Normal(0.0, 1.0).expand([self.spec.dim]).to_event(1)


PRIORS: dict[type, type[Realised]] = {priors.StandardNormal: StandardNormal}
