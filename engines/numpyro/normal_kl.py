"""KLs between normals with diagonal covariances, of components that may be missing."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array


def normal_kl(loc: Array, scale: Array, of_loc: Array, of_scale: Array, mask: Array) -> Array:
    """KL(N(μ, diag σ²)‖N(m, diag s²)) (…, M) in nats, from μ and σ (…, M, p), and m and s that broadcast against them; 0
    where `mask` (…, M) is false, whatever stands there.
    """
    each = mask[..., None]
    ratio = jnp.where(each, scale, of_scale) / of_scale
    apart = (jnp.where(each, loc, of_loc) - of_loc) / of_scale
    return jnp.where(mask, (0.5 * (apart**2 + (ratio - 1) * (ratio + 1)) - jnp.log(ratio)).sum(-1), 0)
