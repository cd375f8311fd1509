"""Semi-amortised refinement of a datum's variational parameters λ (B, P) (Kim et al. 2018, algorithm 1): what the engines share.

λ_0 = W h,   v_k = momentum v_{k-1} + clipped ∂ loss / ∂ λ_k,   λ_{k+1} = λ_k − learning_rate v_k
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..models.errors import BadInput
from .arrays import namespace
from .protocol import Refinement
from .terms import Terms

Array = Any
_TINY = 1e-30
"""Beneath the square root of a norm: its derivative at 0 is finite."""


def negative_elbo(terms: Terms, weight: Any) -> Array:
    """−E_q log p(x | z) + weight · KL summed over the real rows: what λ descends. weight: as `Control` has it."""
    weight = weight["weight"] if isinstance(weight, Mapping) else weight
    return (terms.mean(weight * terms.total_kl() - terms.reconstruction()) * terms.weight).sum()


def descended(at: Array, velocity: Array, gradient: Array, spec: Refinement) -> tuple[Array, Array]:
    """λ_{k+1} and v_k, all (B, P)."""
    velocity = spec.momentum * velocity + _clipped(gradient, spec.clip)
    return at - spec.learning_rate * velocity, velocity


def _clipped(gradient: Array, bound: float) -> Array:
    """The gradient of every datum at a norm of at most `bound`."""
    if math.isinf(bound):
        return gradient
    norm = namespace(gradient).sqrt((gradient**2).sum(-1) + _TINY)
    return gradient * (bound / norm.clip(min=bound))[..., None]


def refuse_other_guides(shapes: Sequence[tuple[int, ...]], rows: int, name: str) -> None:
    """BadInput unless the guide asked a posterior network once, for all rows. shapes: of what it got, W h."""
    if len(shapes) != 1 or len(shapes[0]) != 2 or shapes[0][0] != rows:
        raise BadInput(
            f"fit.refine moves what one posterior network says of each datum, W h, and the guide of the pair {name!r} "
            f"asks one {len(shapes)} times: leave it out"
        )
