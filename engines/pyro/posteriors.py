"""Posterior families q(z | x) on Pyro: posterior(h (…, H)) is a distribution over the latents of the rows of h.

Its event shape is (Z,).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.nn import functional as F

from ...guides import posteriors
from ..running import TINY_VARIANCE, refuse_single_row
from .discrete import Bernoulli as BernoulliLatents
from .discrete import ConcreteBernoulli, ConcreteCategorical, OneHotCategorical
from .flows import FlowNormal as NormalThroughFlow
from .flows import layers_of
from .module import Realised
from .precision import _linear
from .spherical import PowerSpherical as PowerSphericalLatents
from .spherical import VonMisesFisher as VonMisesFisherLatents

_TINY = 1e-30  # whose square root is far below any |m| that a network gives


class Amortised(Realised):
    """A family whose parameters are W h, or what `exchange` gives for them."""

    weight: Tensor
    exchange: Callable[[Tensor], Tensor] | None = None

    def parts(self, h: Tensor, count: int) -> tuple[Tensor, ...]:
        """W h as `count` arrays (…, Z), and what is left."""
        latent = self.sizes["latent"]
        found = _linear(h, self.weight)
        found = self.exchange(found) if self.exchange else found
        return found.split([latent] * count + [found.shape[-1] - count * latent], -1)


class DiagonalNormal(Amortised):
    """q(z | x): a Normal. log σ² is not clamped."""

    def forward(self, h: Tensor) -> dist.TorchDistribution:
        loc, log_variance, _ = self.parts(h, 2)
        return dist.Normal(loc, (0.5 * log_variance).exp(), validate_args=False).to_event(1)


class LowRankNormal(Amortised):
    """q(z | x): a LowRankMultivariateNormal."""

    def forward(self, h: Tensor) -> dist.TorchDistribution:
        loc, log_variance, factor = self.parts(h, 2)
        factor = factor.unflatten(-1, (-1, self.spec.rank))
        return dist.LowRankMultivariateNormal(loc, factor, log_variance.exp(), validate_args=False)


class FullNormal(Amortised):
    """q(z | x): a MultivariateNormal by the Cholesky factor of its covariance."""

    def forward(self, h: Tensor) -> dist.TorchDistribution:
        loc, log_variance, below = self.parts(h, 2)
        rows, columns = torch.tril_indices(loc.shape[-1], loc.shape[-1], -1, device=h.device)
        factor = torch.diag_embed((0.5 * log_variance).exp())
        factor[..., rows, columns] = below
        return dist.MultivariateNormal(loc, scale_tril=factor, validate_args=False)


class BatchNormalisedNormal(Amortised):
    """q(z | x): a Normal whose means have the moments given, over the batch in training."""

    shift: Tensor
    mean: Tensor
    variance: Tensor

    def forward(self, h: Tensor) -> dist.TorchDistribution:
        loc, log_variance, _ = self.parts(h, 2)
        mean, variance = self.mean, self.variance
        if self.training:
            refuse_single_row(h.shape)
            variance, mean = torch.var_mean(loc, -2, correction=0, keepdim=True)
            self.report(mean=mean.squeeze(-2), variance=variance.squeeze(-2))
        loc = self.shift + self.spec.gain * (loc - mean) * (variance + TINY_VARIANCE).rsqrt()
        return dist.Normal(loc, (0.5 * log_variance).exp(), validate_args=False).to_event(1)


class DeltaNormal(Amortised):
    """q(z | x): a Normal whose KL from N(0, I) is at least the rate in every dimension."""

    def forward(self, h: Tensor) -> dist.TorchDistribution:
        above, within, _ = self.parts(h, 2)
        least, largest = self.spec.variances
        variance = least + (largest - least) * within.sigmoid()
        squared = 2 * self.spec.rate + 1 + variance.log() - variance + above.relu()
        return dist.Normal(squared.clamp(min=1e-12).sqrt(), variance.sqrt(), validate_args=False).to_event(1)


class FlowNormal(Amortised):
    """q(z | x): a normal through a flow."""

    def forward(self, h: Tensor) -> dist.TorchDistribution:
        loc, log_variance, _ = self.parts(h, 2)
        layers = layers_of(self.spec.flow, self.get_parameter, loc.shape[-1], h)
        return NormalThroughFlow(loc, (0.5 * log_variance).exp(), self.spec.flow, layers)


class Residual(Realised):
    """N(m_p + m, diag s²) of p(z_t | …) and N(m, diag s²)."""

    def forward(self, prior: Any, normal: Any) -> dist.TorchDistribution:
        base = normal.base_dist
        return dist.Normal(prior.mean + base.loc, base.scale, validate_args=False).to_event(1)


class Laplace(Amortised):
    """q(z | x): a Laplace."""

    def forward(self, h: Tensor) -> dist.TorchDistribution:
        loc, log_scale, _ = self.parts(h, 2)
        return dist.Laplace(loc, log_scale.exp(), validate_args=False).to_event(1)


class Logistic(Amortised):
    """q(z | x): a Logistic."""

    def forward(self, h: Tensor) -> dist.TorchDistribution:
        loc, log_scale, _ = self.parts(h, 2)
        return dist.Logistic(loc, log_scale.exp(), validate_args=False).to_event(1)


class PointMass(Amortised):
    """q(z | x): a Delta."""

    def forward(self, h: Tensor) -> dist.TorchDistribution:
        return dist.Delta(self.parts(h, 1)[0], validate_args=False).to_event(1)


class UniformBox(Amortised):
    """q(z | x): a Uniform within the box."""

    def forward(self, h: Tensor) -> dist.TorchDistribution:
        place, share, _ = self.parts(h, 2)
        side = self.spec.high - self.spec.low
        length = side * share.sigmoid()
        low = self.spec.low + (side - length) * place.sigmoid()
        return dist.Uniform(low, (low + length).clamp(max=self.spec.high), validate_args=False).to_event(1)


class Spherical(Amortised):
    """A family on the sphere."""

    def directions(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """μ (…, Z) and κ (…)."""
        m, k = self.parts(h, 1)
        loc = m * (m.square().sum(-1, keepdim=True) + _TINY).rsqrt()
        fixed = self.spec.concentration
        return loc, 1 + F.softplus(k.squeeze(-1)) if fixed is None else loc.new_full(loc.shape[:-1], fixed)


class VonMisesFisher(Spherical):
    """q(z | x): a VonMisesFisher."""

    def forward(self, h: Tensor) -> dist.TorchDistribution:
        return VonMisesFisherLatents(*self.directions(h), validate_args=False)


class PowerSpherical(Spherical):
    """q(z | x): a PowerSpherical."""

    def forward(self, h: Tensor) -> dist.TorchDistribution:
        return PowerSphericalLatents(*self.directions(h), validate_args=False)


class Bernoulli(Amortised):
    """q(z | x): a Bernoulli."""

    def forward(self, h: Tensor) -> dist.TorchDistribution:
        return BernoulliLatents(logits=self.parts(h, 1)[0], validate_args=False).to_event(1)


class Categorical(Amortised):
    """q(z | x): a OneHotCategorical."""

    def forward(self, h: Tensor) -> dist.TorchDistribution:
        return OneHotCategorical(logits=self.parts(h, 1)[0], validate_args=False)


class RelaxedBernoulli(Bernoulli):
    """q(z | x): a Bernoulli, in training with relaxed draws."""

    def forward(self, h: Tensor) -> dist.TorchDistribution:
        if not self.training:
            return super().forward(h)
        logits = self.parts(h, 1)[0]
        return ConcreteBernoulli(logits, self.spec.temperature, self.spec.straight_through).to_event(1)


class RelaxedCategorical(Categorical):
    """q(z | x): a OneHotCategorical, in training with relaxed draws."""

    def forward(self, h: Tensor) -> dist.TorchDistribution:
        if not self.training:
            return super().forward(h)
        return ConcreteCategorical(self.parts(h, 1)[0], self.spec.temperature, self.spec.straight_through)


POSTERIORS: dict[type, type[Realised]] = {
    posteriors.DiagonalNormal: DiagonalNormal,
    posteriors.LowRankNormal: LowRankNormal,
    posteriors.FullNormal: FullNormal,
    posteriors.BatchNormalisedNormal: BatchNormalisedNormal,
    posteriors.DeltaNormal: DeltaNormal,
    posteriors.FlowNormal: FlowNormal,
    posteriors.Residual: Residual,
    posteriors.Laplace: Laplace,
    posteriors.Logistic: Logistic,
    posteriors.PointMass: PointMass,
    posteriors.UniformBox: UniformBox,
    posteriors.VonMisesFisher: VonMisesFisher,
    posteriors.PowerSpherical: PowerSpherical,
    posteriors.Bernoulli: Bernoulli,
    posteriors.Categorical: Categorical,
    posteriors.RelaxedBernoulli: RelaxedBernoulli,
    posteriors.RelaxedCategorical: RelaxedCategorical,
}
