"""Sets of vectors, independent normals: what attention of the plain kind reads, as random measures are laid out.

A draw is packed as (K, p + 1): 0 before each vector z_k, and `MASKED` and zeros at places that take no part.
"""

from __future__ import annotations

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array
from numpyro.distributions import constraints
from numpyro.distributions.kl import kl_divergence

from ...models.errors import BadInput
from .dirichlet import MASKED
from .normal_kl import normal_kl


class VectorSet(dist.Distribution):
    """z_k ~ N(μ_k, diag σ_k²) at each place that takes part.

    loc: (…, K, p). scale: (…, K, p), or None for the points μ_k themselves. mask: (…, K), false for places that take no
    part, whatever their parameters.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012 - as NumPyro declares it
    support: Any = constraints.independent(constraints.real, 2)
    has_rsample: Any = True
    reparametrized_params: ClassVar[list[str]] = ["loc", "scale"]
    pytree_data_fields = ("loc", "scale", "mask_of_places")

    def __init__(self, loc: Array, scale: Array | None, mask: Array, *, validate_args: bool | None = None) -> None:
        shape = jnp.broadcast_shapes(loc.shape[:-1], mask.shape)
        whole, each = (*shape, loc.shape[-1]), jnp.asarray(mask, bool)[..., None]
        self.mask_of_places = jnp.broadcast_to(jnp.asarray(mask, bool), shape)
        self.loc = jnp.broadcast_to(jnp.where(each, loc, 0), whole)
        self.scale = None if scale is None else jnp.broadcast_to(jnp.where(each, scale, 1), whole)
        super().__init__(shape[:-1], (shape[-1], loc.shape[-1] + 1), validate_args=validate_args)

    def sample(self, key: Array | None, sample_shape: tuple[int, ...] = ()) -> Array:
        """sample_shape + batch shape + (K, p + 1)."""
        z = jnp.broadcast_to(self.loc, (*sample_shape, *self.loc.shape))
        if self.scale is not None:
            z = z + self.scale * jax.random.normal(jnp.asarray(key), z.shape, z.dtype)
        return self._packed(jnp.where(self.mask_of_places[..., None], z, 0))

    def log_prob(self, value: Array, intermediates: Any = None) -> Array:
        """(…, K, p + 1) to (…), in nats, against Lebesgue measure on the vectors; 0 of points."""
        if self.scale is None:
            return jnp.zeros(jnp.broadcast_shapes(value.shape[:-2], self.batch_shape), value.dtype)
        each = dist.Normal(self.loc, self.scale).log_prob(value[..., 1:]).sum(-1)
        return jnp.where(self.mask_of_places, each, 0).sum(-1)

    @property
    def mean_measure(self) -> Array:
        """The set at its means, packed as a draw."""
        return self._packed(self.loc)

    def _packed(self, z: Array) -> Array:
        first = jnp.where(self.mask_of_places, 0.0, MASKED).astype(z.dtype)
        return jnp.concatenate((jnp.broadcast_to(first, z.shape[:-1])[..., None], z), -1)


@kl_divergence.register(VectorSet, VectorSet)
def _kl(q: VectorSet, p: VectorSet) -> Array:
    """KL(q‖p); of points −log p at them."""
    if q.event_shape != p.event_shape or p.scale is None:
        raise BadInput(f"sets of vectors of shapes {tuple(q.event_shape)} and {tuple(p.event_shape)} have no KL")
    if q.scale is None:
        return -p.log_prob(q.mean_measure)
    return normal_kl(q.loc, q.scale, p.loc, p.scale, q.mask_of_places).sum(-1)
