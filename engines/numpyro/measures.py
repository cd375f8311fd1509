"""What a decoder attends to on NumPyro: its priors p(F | n), the law of n, and its posteriors q(F | x)."""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array
from jax.nn import logsumexp

from ...guides import measures as posteriors
from ...models import measures
from ...models.measures import NEVER
from .dirichlet_process import BoundedDirichletPrior, BoundedDirichletProcess
from .module import Realised
from .precision import product
from .vector_set import VectorSet


class DirichletProcessPrior(Realised):
    """p(F | n): prior(n (B,), T) is a BoundedDirichletPrior over T + 1 components, the first the prior's own."""

    def __call__(self, lengths: Array, steps: int) -> BoundedDirichletPrior:
        spec, zero = self.spec, jnp.zeros(self.spec.dim)
        total = jnp.log(spec.pseudo_count + spec.increment * lengths.astype(zero.dtype))
        loc, scale = zero + spec.loc, zero + spec.scale
        if spec.empirical:
            loc, scale = self.weights["loc"], jnp.exp(0.5 * self.weights["log_variance"])
            total = total + self.weights["log_pseudo_count"]
        mask = jnp.arange(steps + 1) <= lengths[..., None]
        return BoundedDirichletPrior(total, loc, scale, mask, places=spec.places)

    @property
    def log_alpha(self) -> Array:
        """log α^p (1,), of the prior's own component."""
        own = jnp.full(1, math.log(self.spec.pseudo_count))
        return own + self.weights["log_pseudo_count"] if self.spec.empirical else own


class NormalVectorsPrior(Realised):
    """p(F | n): prior(n (B,), T) is a VectorSet of N(0, I) at the words that have a vector."""

    def __call__(self, lengths: Array, steps: int) -> VectorSet:
        return _standard(self.spec.dim, self.taken(lengths, steps))

    def taken(self, lengths: Array, steps: int) -> Array:
        """(B, K), the places that take part."""
        return jnp.asarray(self.spec.kept(steps)) < lengths[..., None]


class PooledNormalPrior(Realised):
    """p(F): prior(n (B,), T) is a VectorSet of one N(0, I)."""

    def __call__(self, lengths: Array, steps: int) -> VectorSet:
        return _standard(self.spec.dim, self.taken(lengths, steps))

    def taken(self, lengths: Array, steps: int) -> Array:
        """(B, 1), true."""
        return jnp.ones_like(lengths, bool)[..., None]


class LengthLaw(Realised):
    """p(n): length() is a Categorical."""

    def __call__(self) -> Any:
        return dist.Categorical(logits=self.weights["log_shares"])


class _Normals(Realised):
    """Normals from vectors h (…, H)."""

    reads = ("prior",)

    def normals(self, h: Array) -> tuple[Array, Array]:
        """Means and standard deviations (…, p)."""
        log_variance = product(h, self.weights["log_variance"]) + self.weights["log_variance_bias"]
        return self.means(h), jnp.exp(0.5 * log_variance)

    def means(self, h: Array) -> Array:
        return product(h, self.weights["loc"]) + self.weights["loc_bias"]


class DirichletProcessPosterior(_Normals):
    """q(F | x): posterior(h (B, T, H), n (B,)) is a BoundedDirichletProcess over T + 1 components, as the prior's.

    h may have particles, (S, B, T, H). below: (…, T), what log α of the words adds up on.
    """

    def __call__(self, h: Array, lengths: Array, below: Array | None = None, *, prior: Any) -> BoundedDirichletProcess:
        spec, p = self.spec, prior(lengths, h.shape[-2])
        loc, scale = self.normals(h)
        own = jnp.broadcast_to(prior.log_alpha.astype(loc.dtype), (*loc.shape[:-2], 1))
        return BoundedDirichletProcess(
            self._log_alpha(h, loc, own, p.mask_of_components, below),
            _led(p.loc, loc),
            _led(p.scale, scale),
            p.mask_of_components,
            places=p.places,
            scheme="mixture" if spec.objective == "mixture" else "stratified",
            gradient=spec.gradient,
            penalties=(spec.lambda_weights, spec.lambda_locations) if spec.objective == "paper" else None,
        )

    def _log_alpha(self, h: Array, loc: Array, own: Array, mask: Array, below: Array | None) -> Array:
        """(…, T + 1)."""
        of_means = self.spec.pseudo_counts == "quadratic_in_means"
        x = loc if of_means else h
        found = product(x, self.weights["alpha"][None])[..., 0] + self.weights["alpha_bias"]
        if self.spec.pseudo_counts != "exponential":
            found = found + product(x**2, self.weights["alpha_square"][None])[..., 0]
        found = found if below is None else found + below
        if not of_means:
            return jnp.concatenate((own, jnp.clip(found, *posteriors.LOG_ALPHA)), -1)
        both = jnp.concatenate((own, found), -1)
        total = logsumexp(jnp.where(mask, both, NEVER), axis=-1, keepdims=True)
        return both - jnp.maximum(total - posteriors.LOG_ALPHA[1], 0)


class NormalVectors(_Normals):
    """q(F | x): posterior(h (B, T, H), n (B,)) is a VectorSet at the words that have a vector."""

    def __call__(self, h: Array, lengths: Array, *, prior: Any) -> VectorSet:
        kept = jnp.asarray(prior.spec.kept(h.shape[-2]))
        return VectorSet(*self.normals(h[..., kept, :]), prior.taken(lengths, h.shape[-2]))


class PointVectors(_Normals):
    """q(F | x): posterior(h (B, T, H), n (B,)) is a VectorSet of points at the words that have a vector."""

    def __call__(self, h: Array, lengths: Array, *, prior: Any) -> VectorSet:
        kept = jnp.asarray(prior.spec.kept(h.shape[-2]))
        return VectorSet(self.means(h[..., kept, :]), None, prior.taken(lengths, h.shape[-2]))


class PooledNormal(_Normals):
    """q(F | x): posterior(h (B, T, H), n (B,)) is a VectorSet of one vector."""

    def __call__(self, h: Array, lengths: Array, *, prior: Any) -> VectorSet:
        real = (jnp.arange(h.shape[-2]) < jnp.maximum(lengths, 1)[..., None])[..., None]
        if self.spec.pooling == "max":
            pooled = h.max(-2, keepdims=True, where=real, initial=-jnp.inf)
        else:
            pooled = h.sum(-2, keepdims=True, where=real) / real.sum(-2, keepdims=True)
        return VectorSet(*self.normals(pooled), prior.taken(lengths, h.shape[-2]))


def _led(first: Array, rest: Array) -> Array:
    """(…, T + 1, p) of the prior's (B, p) before the words' (…, T, p)."""
    first = jnp.broadcast_to(first[..., None, :], (*rest.shape[:-2], 1, rest.shape[-1]))
    return jnp.concatenate((first, rest), -2)


def _standard(dim: int, mask: Array) -> VectorSet:
    return VectorSet(jnp.zeros((*mask.shape, dim)), jnp.ones((*mask.shape, dim)), mask)


MEASURES: dict[type, type[Realised]] = {
    measures.DirichletProcessPrior: DirichletProcessPrior,
    measures.NormalVectorsPrior: NormalVectorsPrior,
    measures.PooledNormalPrior: PooledNormalPrior,
    measures.LengthLaw: LengthLaw,
    posteriors.DirichletProcessPosterior: DirichletProcessPosterior,
    posteriors.NormalVectors: NormalVectors,
    posteriors.PointVectors: PointVectors,
    posteriors.PooledNormal: PooledNormal,
}
