"""Distributions on the unit sphere S^{m−1} ⊂ R^m: von Mises-Fisher, power spherical and uniform.

All have batch shape (…) and event shape (m,). The two that have a mean direction μ and a concentration κ are
reparameterised in both, in μ through a reflection and in κ by implicit gradients (`spherical_draw`); what they need of
κ alone is in `spherical_moments`. Nothing leaves the device.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array
from numpyro.distributions import constraints
from numpyro.distributions.kl import kl_divergence
from numpyro.distributions.util import validate_sample

from ...models.errors import BadInput
from .spherical_draw import POWER_SPHERICAL, VON_MISES_FISHER, Family, draw
from .spherical_moments import Moments, power_spherical, von_mises_fisher


def log_area(m: int) -> float:
    """log |S^{m−1}|, the area of the unit sphere in R^m, in nats."""
    return math.log(2) + m / 2 * math.log(math.pi) - math.lgamma(m / 2)


class HypersphericalUniform(dist.Distribution):
    """The uniform distribution on the unit sphere in R^m.

    dim: m ≥ 2. dtype: of the draws; JAX's default if not given.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012 - as NumPyro declares it
    support: Any = constraints.sphere
    reparametrized_params: ClassVar[list[str]] = []
    pytree_aux_fields = ("dim", "dtype")

    def __init__(
        self, dim: int, batch_shape: tuple[int, ...] = (), *, dtype: Any = None, validate_args: bool | None = None
    ) -> None:
        _check_dim(dim)
        self.dim, self.dtype = dim, dtype
        super().__init__(tuple(batch_shape), (dim,), validate_args=validate_args)

    has_rsample: Any = True

    def sample(self, key: Array | None, sample_shape: tuple[int, ...] = ()) -> Array:
        """sample_shape + batch shape + (m,)."""
        shape = (*sample_shape, *self.batch_shape, self.dim)
        normal = jax.random.normal(key, shape, self.dtype or jnp.result_type(float))  # pyright: ignore[reportArgumentType]
        return normal / jnp.linalg.norm(normal, axis=-1, keepdims=True)

    @validate_sample
    def log_prob(self, value: Array, intermediates: Any = None) -> Array:
        """(…, m) to (…), in nats against the surface area."""
        shape = jnp.broadcast_shapes(value.shape[:-1], self.batch_shape)
        return jnp.full(shape, -log_area(self.dim), value.dtype)

    def entropy(self) -> Array:
        """The batch shape, in nats."""
        return jnp.full(self.batch_shape, log_area(self.dim), self.dtype)

    @property
    def mean(self) -> Array:
        """0, batch shape + (m,)."""
        return jnp.zeros((*self.batch_shape, self.dim), self.dtype)


class _Concentrated(dist.Distribution):
    """p(z) = exp(L(κ) + κ T(μᵀz)) / |S^{m−1}|, see `spherical_moments`."""

    arg_constraints: dict[str, Any] = {  # noqa: RUF012 - as NumPyro declares it
        "loc": constraints.sphere,
        "concentration": constraints.positive,
    }
    support: Any = constraints.sphere
    reparametrized_params: ClassVar[list[str]] = ["loc", "concentration"]
    pytree_data_fields = ("loc", "concentration")
    _family: Family

    def __init__(self, loc: Array, concentration: Array | float, *, validate_args: bool | None = None) -> None:
        concentration = jnp.asarray(concentration, loc.dtype)
        _check_dim(loc.shape[-1] if loc.ndim else 0)
        batch = jnp.broadcast_shapes(loc.shape[:-1], concentration.shape)
        self.loc = jnp.broadcast_to(loc, (*batch, loc.shape[-1]))
        self.concentration = jnp.broadcast_to(concentration, batch)
        super().__init__(batch, loc.shape[-1:], validate_args=validate_args)

    @property
    def moments(self) -> Moments:
        """What depends on κ alone, of the batch shape."""
        raise NotImplementedError

    @validate_sample
    def log_prob(self, value: Array, intermediates: Any = None) -> Array:
        """(…, m) to (…), in nats against the surface area. From |z − μ|², which holds its digits where κ is large."""
        square = ((value - self.loc) ** 2).sum(-1)
        return self.moments.log_peak + self.concentration * self._statistic(square) - log_area(self.event_shape[0])

    def sample(self, key: Array | None, sample_shape: tuple[int, ...] = ()) -> Array:
        """sample_shape + batch shape + (m,), of unit norm."""
        shape = (*sample_shape, *self.batch_shape, *self.event_shape)
        return draw(self._family, jnp.asarray(key), self.loc, self.concentration, self.moments.slope, shape)

    def entropy(self) -> Array:
        """The batch shape, in nats."""
        return log_area(self.event_shape[0]) - self.moments.kl

    @property
    def mean(self) -> Array:
        """E[z] = E[μᵀz] μ, batch shape + (m,)."""
        return self.moments.mean_resultant[..., None] * self.loc

    @property
    def variance(self) -> Array:
        """Of each coordinate, batch shape + (m,), from E[(μᵀz)²]."""
        along = self._second_moment()
        across = (1 - along) / (self.event_shape[0] - 1)
        square = self.loc**2
        return square * along[..., None] + (1 - square) * across[..., None] - self.mean**2

    def _statistic(self, square: Array) -> Array:
        raise NotImplementedError

    def _second_moment(self) -> Array:
        raise NotImplementedError


class VonMisesFisher(_Concentrated):
    """The von Mises-Fisher distribution, log p(z) = κ μᵀz + log C_m(κ) (Davidson et al. 2018).

    loc: μ (…, m), m ≥ 2, of unit norm. concentration: κ (…), positive, broadcastable with μ's batch. float32 or float64.
    """

    _family = VON_MISES_FISHER

    @property
    def moments(self) -> Moments:
        return von_mises_fisher(self.event_shape[0], self.concentration)

    def _statistic(self, square: Array) -> Array:
        return -0.5 * square

    def _second_moment(self) -> Array:
        return 1 - (self.event_shape[0] - 1) * self.moments.mean_resultant / self.concentration


class PowerSpherical(_Concentrated):
    """The power spherical distribution, p(z) ∝ (1 + μᵀz)^κ: no rejection (De Cao & Aziz 2020).

    loc: μ (…, m), m ≥ 2, of unit norm. concentration: κ (…), positive, broadcastable with μ's batch. float32 or float64.
    """

    _family = POWER_SPHERICAL

    @property
    def moments(self) -> Moments:
        return power_spherical(self.event_shape[0], self.concentration)

    def _statistic(self, square: Array) -> Array:
        return jnp.log1p(-0.25 * square)

    def _second_moment(self) -> Array:
        """(1 + μᵀz) / 2 is Beta(α, β), β = (m − 1) / 2 and α = β + κ."""
        whole = self.concentration + (self.event_shape[0] - 1)
        mean = self.moments.mean_resultant
        return mean**2 + (1 - mean**2) / (whole + 1)


@kl_divergence.register(VonMisesFisher, HypersphericalUniform)
@kl_divergence.register(PowerSpherical, HypersphericalUniform)
def _kl_to_uniform(q: _Concentrated, p: HypersphericalUniform) -> Array:
    _check_same(q, p)
    return jnp.broadcast_to(q.moments.kl, jnp.broadcast_shapes(q.batch_shape, p.batch_shape))


@kl_divergence.register(VonMisesFisher, VonMisesFisher)
def _kl_to_von_mises_fisher(q: VonMisesFisher, p: VonMisesFisher) -> Array:
    """KL(q‖U) − L(κ_p) + κ_p (1 − A_q μ_qᵀμ_p)."""
    _check_same(q, p)
    apart = 0.5 * ((q.loc - p.loc) ** 2).sum(-1)
    deficit = q.moments.kl - q.moments.log_peak  # −κ_q (1 − A_q)
    fall = q.moments.mean_resultant * apart - deficit / q.concentration
    return q.moments.kl - p.moments.log_peak + p.concentration * fall


def _check_dim(m: int) -> None:
    if m < 2:
        raise BadInput(f"a sphere is in at least 2 dimensions, not {m}")


def _check_same(q: dist.Distribution, p: dist.Distribution) -> None:
    if q.event_shape != p.event_shape:
        raise BadInput(f"spheres in {q.event_shape[0]} and {p.event_shape[0]} dimensions have no KL")
