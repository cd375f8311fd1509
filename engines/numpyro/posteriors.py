"""Posterior families q(z | x) on NumPyro: posterior(h (…, H)) is a distribution over the latents of the rows of h.

Its event shape is (Z,).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array

from ...guides import posteriors
from ..running import TINY_VARIANCE, refuse_single_row
from .discrete import Bernoulli as BernoulliLatents
from .discrete import ConcreteBernoulli, ConcreteCategorical, OneHotCategorical
from .flows import FlowNormal as NormalThroughFlow
from .flows import layers_of
from .module import Realised
from .precision import product
from .spherical import PowerSpherical as PowerSphericalLatents
from .spherical import VonMisesFisher as VonMisesFisherLatents

_TINY = 1e-30  # whose square root is far below any |m| that a network gives


class Amortised(Realised):
    """A family whose parameters are W h, or what `exchange` gives for them."""

    exchange: Callable[[Array], Array] | None = eqx.field(static=True, default=None)

    def parts(self, h: Array, count: int) -> list[Array]:
        """W h as `count` arrays (…, Z), and what is left."""
        found = product(h, self.weights["weight"])
        found = self.exchange(found) if self.exchange else found
        latent = dict(self.sizes)["latent"]
        return jnp.split(found, [latent * (place + 1) for place in range(count)], axis=-1)


class DiagonalNormal(Amortised):
    """q(z | x): a Normal. log σ² is not clamped."""

    def __call__(self, h: Array) -> dist.Distribution:
        loc, log_variance, _ = self.parts(h, 2)
        return dist.Normal(loc, jnp.exp(0.5 * log_variance)).to_event(1)


class LowRankNormal(Amortised):
    """q(z | x): a LowRankMultivariateNormal."""

    def __call__(self, h: Array) -> dist.Distribution:
        loc, log_variance, factor = self.parts(h, 2)
        factor = factor.reshape(*loc.shape, self.spec.rank)
        return dist.LowRankMultivariateNormal(loc, factor, jnp.exp(log_variance))


class FullNormal(Amortised):
    """q(z | x): a MultivariateNormal by the Cholesky factor of its covariance."""

    def __call__(self, h: Array) -> dist.Distribution:
        loc, log_variance, below = self.parts(h, 2)
        rows, columns = np.tril_indices(loc.shape[-1], -1)
        factor = jnp.exp(0.5 * log_variance)[..., None] * jnp.eye(loc.shape[-1])
        factor = factor.at[..., rows, columns].set(below)
        return dist.MultivariateNormal(loc, scale_tril=factor)


class BatchNormalisedNormal(Amortised):
    """q(z | x): a Normal whose means have the moments given, over the batch in training."""

    def __call__(self, h: Array, *, key: Array | None = None) -> dist.Distribution:
        loc, log_variance, _ = self.parts(h, 2)
        mean, variance = self.weights["mean"], self.weights["variance"]
        if key is not None:
            refuse_single_row(h.shape)
            mean, variance = loc.mean(-2, keepdims=True), loc.var(-2, keepdims=True)
            self.report(mean=mean.squeeze(-2), variance=variance.squeeze(-2))
        loc = self.weights["shift"] + self.spec.gain * (loc - mean) * jax.lax.rsqrt(variance + TINY_VARIANCE)
        return dist.Normal(loc, jnp.exp(0.5 * log_variance)).to_event(1)


class DeltaNormal(Amortised):
    """q(z | x): a Normal whose KL from N(0, I) is at least the rate in every dimension."""

    def __call__(self, h: Array) -> dist.Distribution:
        above, within, _ = self.parts(h, 2)
        least, largest = self.spec.variances
        variance = least + (largest - least) * jax.nn.sigmoid(within)
        squared = 2 * self.spec.rate + 1 + jnp.log(variance) - variance + jax.nn.relu(above)
        return dist.Normal(jnp.sqrt(jnp.maximum(squared, 1e-12)), jnp.sqrt(variance)).to_event(1)


class FlowNormal(Amortised):
    """q(z | x): a normal through a flow."""

    def __call__(self, h: Array) -> dist.Distribution:
        loc, log_variance, _ = self.parts(h, 2)
        layers = layers_of(self.spec.flow, self.weights.__getitem__, loc.shape[-1], h)
        return NormalThroughFlow(loc, jnp.exp(0.5 * log_variance), self.spec.flow, layers)


class Residual(Realised):
    """N(m_p + m, diag s²) of p(z_t | …) and N(m, diag s²)."""

    def __call__(self, prior: Any, normal: Any) -> dist.Distribution:
        base = normal.base_dist
        return dist.Normal(prior.mean + base.loc, base.scale).to_event(1)


class Laplace(Amortised):
    """q(z | x): a Laplace."""

    def __call__(self, h: Array) -> dist.Distribution:
        loc, log_scale, _ = self.parts(h, 2)
        return dist.Laplace(loc, jnp.exp(log_scale)).to_event(1)


class Logistic(Amortised):
    """q(z | x): a Logistic."""

    def __call__(self, h: Array) -> dist.Distribution:
        loc, log_scale, _ = self.parts(h, 2)
        return dist.Logistic(loc, jnp.exp(log_scale)).to_event(1)


class PointMass(Amortised):
    """q(z | x): a Delta."""

    def __call__(self, h: Array) -> dist.Distribution:
        return dist.Delta(self.parts(h, 1)[0]).to_event(1)


class UniformBox(Amortised):
    """q(z | x): a Uniform within the box."""

    def __call__(self, h: Array) -> dist.Distribution:
        place, share, _ = self.parts(h, 2)
        side = self.spec.high - self.spec.low
        length = side * jax.nn.sigmoid(share)
        low = self.spec.low + (side - length) * jax.nn.sigmoid(place)
        return dist.Uniform(low, jnp.minimum(low + length, self.spec.high)).to_event(1)


class Spherical(Amortised):
    """A family on the sphere."""

    def directions(self, h: Array) -> tuple[Array, Array]:
        """μ (…, Z) and κ (…)."""
        m, k = self.parts(h, 1)
        loc = m * jax.lax.rsqrt((m**2).sum(-1, keepdims=True) + _TINY)
        fixed = self.spec.concentration
        return loc, 1 + jax.nn.softplus(k[..., 0]) if fixed is None else jnp.full(loc.shape[:-1], fixed, loc.dtype)


class VonMisesFisher(Spherical):
    """q(z | x): a VonMisesFisher."""

    def __call__(self, h: Array) -> dist.Distribution:
        return VonMisesFisherLatents(*self.directions(h))


class PowerSpherical(Spherical):
    """q(z | x): a PowerSpherical."""

    def __call__(self, h: Array) -> dist.Distribution:
        return PowerSphericalLatents(*self.directions(h))


class Bernoulli(Amortised):
    """q(z | x): a Bernoulli."""

    def __call__(self, h: Array) -> dist.Distribution:
        return BernoulliLatents(self.parts(h, 1)[0]).to_event(1)


class Categorical(Amortised):
    """q(z | x): a OneHotCategorical."""

    def __call__(self, h: Array) -> dist.Distribution:
        return OneHotCategorical(self.parts(h, 1)[0])


class RelaxedBernoulli(Bernoulli):
    """q(z | x): a Bernoulli, in training with relaxed draws."""

    def __call__(self, h: Array, *, key: Array | None = None) -> dist.Distribution:
        if key is None:
            return super().__call__(h)
        logits = self.parts(h, 1)[0]
        return ConcreteBernoulli(logits, self.spec.temperature, self.spec.straight_through).to_event(1)


class RelaxedCategorical(Categorical):
    """q(z | x): a OneHotCategorical, in training with relaxed draws."""

    def __call__(self, h: Array, *, key: Array | None = None) -> dist.Distribution:
        if key is None:
            return super().__call__(h)
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
