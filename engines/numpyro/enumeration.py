"""Every value of a pair's one discrete latent in place of draws, so that expectations under the guide are sums."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from ..enumerable import refuse_latents, refuse_other, refuse_size
from ..terms import Terms
from .analytic import peel


def support(guide: dict[str, Any], plate: str) -> Array:
    """The values of the latent among the guide's sites, (S, *event), K^D for D independent coordinates of K values.

    Raises:
        BadInput: no latent, several, one that is not one a datum, not discrete, or of too many values.
    """
    name, site = refuse_latents(guide)
    fn = site["fn"]
    base, depth, _ = peel(fn)
    rows = [frame.size for frame in site["cond_indep_stack"] if frame.name == plate]
    refuse_other(name, one_a_datum=[math.prod(fn.batch_shape)] == rows, discrete=base.has_enumerate_support)
    values = base.enumerate_support(expand=False)
    values = values.reshape(len(values), *base.event_shape)
    shape = fn.event_shape[:depth]
    refuse_size(name, len(values), math.prod(shape))
    places = np.array(list(itertools.product(range(len(values)), repeat=math.prod(shape))))
    return values[places].reshape(len(places), *fn.event_shape)


def at(guide_trace: Any, values: Array, latents: Iterable[str]) -> Any:
    """The guide's trace with its one latent at values (S, *event), S its outermost size, or at one value (*event)."""
    [name] = latents
    site = guide_trace[name]
    shape, event = site["fn"].shape(), site["fn"].event_dim
    lead = values.shape[: values.ndim - event]
    ones = (1,) * (len(shape) - event - len(lead))
    value = jnp.broadcast_to(values.reshape(*lead, *ones, *values.shape[len(lead) :]), shape)
    return {**guide_trace, name: {**site, "value": value}}


def weighed(terms: Terms) -> Terms:
    """`Terms` over all values of the latent, (S, B), with the share q(z | x) of each."""
    return terms._replace(share=jnp.exp(next(iter(terms.log_posterior.values()))))
