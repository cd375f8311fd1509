"""KL(q‖p) where a formula is registered."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import Array
from numpyro.distributions import ExpandedDistribution, Independent, kl_divergence
from numpyro.distributions.distribution import MaskedDistribution

from . import divergences  # noqa: F401 - it registers what the library lacks


def analytic_kl(q: Any, p: Any) -> Array | None:
    """KL(q‖p) with the event dimensions flattened into a last one (…, D), or None where no formula is registered."""
    batch, event = jnp.broadcast_shapes(q.batch_shape, p.batch_shape), q.event_shape
    (q_base, q_depth, q_mask), (p_base, p_depth, p_mask) = peel(q), peel(p)
    factorises = q_depth == p_depth == len(event) > 0
    if not factorises:
        (q_base, q_mask), (p_base, p_mask) = _unmasked(q), _unmasked(p)
    try:
        kl = kl_divergence(q_base, p_base)
    except NotImplementedError:
        return None
    kl = (
        jnp.broadcast_to(kl, batch + event).reshape(*batch, -1)
        if factorises
        else jnp.broadcast_to(kl, batch)[..., None]
    )
    mask = q_mask & p_mask
    return kl if mask is True else jnp.where(jnp.asarray(mask)[..., None], kl, 0.0)


def peel(fn: Any) -> tuple[Any, int, Any]:
    """The distribution of one coordinate, how many event dimensions are independent copies of it, and its mask."""
    depth, mask = 0, True
    while isinstance(fn, (Independent, ExpandedDistribution, MaskedDistribution)):
        depth += fn.reinterpreted_batch_ndims if isinstance(fn, Independent) else 0
        mask = mask & fn._mask if isinstance(fn, MaskedDistribution) else mask
        fn = fn.base_dist
    return fn, depth, mask


def _unmasked(fn: Any) -> tuple[Any, Any]:
    """`fn` as it was before `mask` and `plate`, and its mask: KLs are registered for two masked sides only."""
    mask = True
    while isinstance(fn, (ExpandedDistribution, MaskedDistribution)):
        mask = mask & fn._mask if isinstance(fn, MaskedDistribution) else mask
        fn = fn.base_dist
    return fn, mask
