"""Every value of a pair's one discrete latent in place of draws, so that expectations under the guide are sums."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ..enumerable import refuse_latents, refuse_other, refuse_size
from ..terms import Terms
from .analytic import peel


def support(guide: dict[str, Any], plate: str) -> Tensor:
    """The values of the latent among the guide's sites, (S, *event), K^D for D independent coordinates of K values.

    Raises:
        BadInput: no latent, several, one that is not one a datum, not discrete, or of too many values.
    """
    name, site = refuse_latents(guide)
    fn = site["fn"]
    base, depth = peel(fn)
    rows = [frame.size for frame in site["cond_indep_stack"] if frame.name == plate]
    refuse_other(name, one_a_datum=[fn.batch_shape.numel()] == rows, discrete=base.has_enumerate_support)
    values = base.enumerate_support(expand=False)
    values = values.reshape(len(values), *base.event_shape)
    shape = fn.event_shape[:depth]
    refuse_size(name, len(values), shape.numel())
    places = torch.tensor(list(itertools.product(range(len(values)), repeat=shape.numel())), device=values.device)
    return values[places].reshape(len(places), *fn.event_shape)


def at(guide_trace: Any, values: Tensor, latents: Iterable[str]) -> Any:
    """The guide's trace with its one latent at values (S, *event), S its outermost size, or at one value (*event)."""
    [name] = latents
    trace = guide_trace.copy()
    site = trace.nodes[name] = trace.nodes[name].copy()
    shape = site["fn"].shape()
    event = len(site["fn"].event_shape)
    lead = values.shape[: values.dim() - event]
    ones = (1,) * (len(shape) - event - len(lead))
    site["value"] = values.reshape(*lead, *ones, *values.shape[len(lead) :]).expand(shape)
    return trace


def weighed(terms: Terms) -> Terms:
    """`Terms` over all values of the latent, (S, B), with the share q(z | x) of each."""
    return terms._replace(share=torch.exp(next(iter(terms.log_posterior.values()))))
