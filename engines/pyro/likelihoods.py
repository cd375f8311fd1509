"""Likelihoods of vectors on Pyro."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
from torch import Tensor
from torch.nn import functional as F

from ...models import likelihoods
from .module import Realised
from .strokes import PenStrokes


class BernoulliLikelihood(Realised):
    """p(x | f): likelihood(f (…, D)) is a Bernoulli of event shape (D,)."""

    def forward(self, features: Tensor) -> dist.TorchDistribution:
        return dist.Bernoulli(logits=features, validate_args=False).to_event(1)


class GaussianLikelihood(Realised):
    """p(x | f): likelihood(f (…, 2 D)) is a Normal of event shape (D,)."""

    def forward(self, features: Tensor) -> dist.TorchDistribution:
        loc, scale = features.chunk(2, -1)
        loc = loc.sigmoid() if self.spec.bounded else loc
        return dist.Normal(loc, _scale(self.spec, scale), validate_args=False).to_event(1)


class GaussianMixtureLikelihood(Realised):
    """p(x | f): likelihood(f (…, K (1 + 2 D))) is a mixture of event shape (D,)."""

    def forward(self, features: Tensor) -> dist.TorchDistribution:
        count = self.spec.components
        logits, each = features[..., :count], features[..., count:].unflatten(-1, (2, count, -1))
        loc, scale = each[..., 0, :, :], each[..., 1, :, :]
        normals = dist.Normal(loc, _scale(self.spec, scale), validate_args=False).to_event(1)
        chosen = dist.Categorical(logits=logits, validate_args=False)
        return dist.MixtureSameFamily(chosen, normals, validate_args=False)


class StrokesLikelihood(Realised):
    """p(x | f): likelihood(f (…, 1 + 6 K)) is a PenStrokes of event shape (3,)."""

    def forward(self, features: Tensor) -> dist.TorchDistribution:
        count = self.spec.components
        pen, logits, loc, scale, correlation = features.split((1, count, 2 * count, 2 * count, count), -1)
        loc, scale = (part.unflatten(-1, (count, 2)) for part in (loc, scale))
        correlation = likelihoods.CORRELATION * correlation.tanh()
        return PenStrokes(pen.squeeze(-1), logits, loc, _scale(self.spec, scale), correlation)


def _scale(spec: Any, feature: Tensor) -> Tensor:
    return (0.5 * feature).exp() if spec.scale == "exp" else F.softplus(feature) + likelihoods.FLOOR


LIKELIHOODS: dict[type, type[Realised]] = {
    likelihoods.BernoulliLikelihood: BernoulliLikelihood,
    likelihoods.GaussianLikelihood: GaussianLikelihood,
    likelihoods.GaussianMixtureLikelihood: GaussianMixtureLikelihood,
    likelihoods.StrokesLikelihood: StrokesLikelihood,
}
