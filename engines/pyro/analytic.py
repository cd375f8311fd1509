"""KL(q‖p) where a formula is registered."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.distributions import Independent, kl_divergence

from . import divergences  # noqa: F401 - it registers what the library lacks


def analytic_kl(q: Any, p: Any) -> Tensor | None:
    """KL(q‖p) with the event dimensions flattened into a last one (…, D), or None where no formula is registered."""
    (q_base, q_depth), (p_base, p_depth) = peel(q), peel(p)
    factorises = q_depth == p_depth == len(q.event_shape) > 0
    try:
        kl = kl_divergence(q_base, p_base) if factorises else kl_divergence(q, p)
    except NotImplementedError:
        return None
    return kl.flatten(-q_depth) if factorises else kl.unsqueeze(-1)


def peel(fn: Any) -> tuple[Any, int]:
    """The distribution of one coordinate, and how many event dimensions are independent copies of it."""
    depth = 0
    while isinstance(fn, Independent):
        depth += fn.reinterpreted_batch_ndims
        fn = fn.base_dist
    return fn, depth
