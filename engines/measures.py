"""What denoising attention reads, in arrays of either engine: projections, a measure, and what is kept of both."""

from __future__ import annotations

from typing import Any, NamedTuple

from ..models.errors import BadInput


class Projections(NamedTuple):
    """W_Q (p, p_q), W_K and W_V (p, p) as outputs × inputs, the heads one after the other; b_Q and b_V (p,)."""

    query: Any
    key: Any
    value: Any
    query_bias: Any = None
    value_bias: Any = None


class Atoms(NamedTuple):
    """z (…, n, p) and log π (…, n) up to a constant. mask (…, n): False where there is none, whatever stands there."""

    z: Any
    log_weight: Any
    mask: Any = None


class Components(NamedTuple):
    """log π (…, n) up to a constant, log α say; μ (…, n, p); σ² (…, n, p), or (…, n, 1), which is cheap; mask (…, n)."""

    log_weight: Any
    loc: Any
    variance: Any
    mask: Any = None


class Keys(NamedTuple):
    """What `attend` needs of a measure: keys and values (…, H, n, d) and the bias (…, n), with 0 as its largest.

    Of components also the gates (…, n, p or 1), over 2 r what meets u² if that counts, and with scalar gates
    W_K [W_K; W_V]ᵀ of each head (H, d, 2 d), which gives |u|² and W_V u from q.
    """

    key: Any
    value: Any
    bias: Any
    gate: Any = None
    square: Any = None
    lifted: Any = None


def noise_variance(projections: Projections, heads: int) -> float:
    """r = √d, d the width of a head. BadInput if the heads do not divide the width of the keys."""
    width, rest = divmod(len(projections.key), heads)
    if rest:
        raise BadInput(f"{len(projections.key)} outputs of the keys are not {heads} heads of one width")
    return width**0.5
