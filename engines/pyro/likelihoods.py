"""Likelihoods of vectors on Pyro."""

from __future__ import annotations

import pyro.distributions as dist
from torch import Tensor

from ...models import likelihoods
from .module import Realised


class BernoulliLikelihood(Realised):
    """p(x | f): likelihood(f (…, D)) is a Bernoulli of event shape (D,)."""

    def forward(self, features: Tensor) -> dist.TorchDistribution:
        return dist.Bernoulli(logits=features, validate_args=False).to_event(1)


class GaussianLikelihood(Realised):
    """p(x | f): likelihood(f (…, 2 D)) is a Normal of event shape (D,)."""

    def forward(self, features: Tensor) -> dist.TorchDistribution:
        loc, log_variance = features.chunk(2, -1)
        loc = loc.sigmoid() if self.spec.bounded else loc
        return dist.Normal(loc, (0.5 * log_variance).exp(), validate_args=False).to_event(1)


LIKELIHOODS: dict[type, type[Realised]] = {
    likelihoods.BernoulliLikelihood: BernoulliLikelihood,
    likelihoods.GaussianLikelihood: GaussianLikelihood,
}
