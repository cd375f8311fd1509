"""Likelihoods of vectors on NumPyro."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array

from ...models import likelihoods
from .module import Realised
from .strokes import PenStrokes


class BernoulliLikelihood(Realised):
    """p(x | f): likelihood(f (…, D)) is a Bernoulli of event shape (D,)."""

    def __call__(self, features: Array) -> dist.Distribution:
        return dist.BernoulliLogits(features).to_event(1)


class GaussianLikelihood(Realised):
    """p(x | f): likelihood(f (…, 2 D)) is a Normal of event shape (D,)."""

    def __call__(self, features: Array) -> dist.Distribution:
        loc, scale = jnp.split(features, 2, axis=-1)
        loc = jax.nn.sigmoid(loc) if self.spec.bounded else loc
        return dist.Normal(loc, _scale(self.spec, scale)).to_event(1)


class GaussianMixtureLikelihood(Realised):
    """p(x | f): likelihood(f (…, K (1 + 2 D))) is a mixture of event shape (D,)."""

    def __call__(self, features: Array) -> dist.Distribution:
        count = self.spec.components
        logits, each = features[..., :count], features[..., count:]
        each = each.reshape(*features.shape[:-1], 2, count, -1)
        loc, scale = each[..., 0, :, :], each[..., 1, :, :]
        normals = dist.Normal(loc, _scale(self.spec, scale)).to_event(1)
        return dist.MixtureSameFamily(dist.Categorical(logits=logits), normals)


class StrokesLikelihood(Realised):
    """p(x | f): likelihood(f (…, 1 + 6 K)) is a PenStrokes of event shape (3,)."""

    def __call__(self, features: Array) -> dist.Distribution:
        count = self.spec.components
        cuts = [1, 1 + count, 1 + 3 * count, 1 + 5 * count]
        pen, logits, loc, scale, correlation = jnp.split(features, cuts, axis=-1)
        loc, scale = (part.reshape(*features.shape[:-1], count, 2) for part in (loc, scale))
        correlation = likelihoods.CORRELATION * jnp.tanh(correlation)
        return PenStrokes(pen[..., 0], logits, loc, _scale(self.spec, scale), correlation)


def _scale(spec: Any, feature: Array) -> Array:
    return jnp.exp(0.5 * feature) if spec.scale == "exp" else jax.nn.softplus(feature) + likelihoods.FLOOR


LIKELIHOODS: dict[type, type[Realised]] = {
    likelihoods.BernoulliLikelihood: BernoulliLikelihood,
    likelihoods.GaussianLikelihood: GaussianLikelihood,
    likelihoods.GaussianMixtureLikelihood: GaussianMixtureLikelihood,
    likelihoods.StrokesLikelihood: StrokesLikelihood,
}
