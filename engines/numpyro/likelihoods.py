"""Likelihoods of vectors on NumPyro."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array

from ...models import likelihoods
from .module import Realised


class BernoulliLikelihood(Realised):
    """p(x | f): likelihood(f (…, D)) is a Bernoulli of event shape (D,)."""

    def __call__(self, features: Array) -> dist.Distribution:
        return dist.BernoulliLogits(features).to_event(1)


class GaussianLikelihood(Realised):
    """p(x | f): likelihood(f (…, 2 D)) is a Normal of event shape (D,)."""

    def __call__(self, features: Array) -> dist.Distribution:
        loc, log_variance = jnp.split(features, 2, axis=-1)
        loc = jax.nn.sigmoid(loc) if self.spec.bounded else loc
        return dist.Normal(loc, jnp.exp(0.5 * log_variance)).to_event(1)


LIKELIHOODS: dict[type, type[Realised]] = {
    likelihoods.BernoulliLikelihood: BernoulliLikelihood,
    likelihoods.GaussianLikelihood: GaussianLikelihood,
}
