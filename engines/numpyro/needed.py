"""The terms that only some objectives need: `Objective.needs` names them, `engines/terms.py` says what they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from typing import Any

import jax.numpy as jnp
from jax import Array
from jax.lax import stop_gradient as fixed
from numpyro.distributions import BernoulliLogits, BernoulliProbs, Laplace, Logistic, Normal

from .analytic import peel
from .arrays import stop_gradient
from .discrete import OneHotCategorical


def needed(p: Mapping[str, Any], q: Mapping[str, Any], needs: Set[str], plates: Set[str], key: Array) -> dict[str, Any]:
    """Field of `Terms` → its value for one latent site, before it is summed to one number a datum.

    plates: the names of the plates whose dimensions a draw keeps; what is left becomes its last one.
    """
    fields: dict[str, Callable[[], Array | None]] = {
        "path": lambda: stop_gradient(q["fn"]).log_prob(q["value"]),
        "score": lambda: q["fn"].log_prob(fixed(q["value"])),
        "score_norm": lambda: _score_norm(q),
        "latent": lambda: _vector(q["value"], q, plates),
        "prior_draw": lambda: _vector(p["fn"].sample(key), p, plates),
        "normal": lambda: _moments(p, q, plates),
    }
    found = {name: make() for name, make in fields.items() if name in needs}
    return {name: value for name, value in found.items() if value is not None}


def _score_norm(q: Mapping[str, Any]) -> Array | None:
    """‖∂ log q / ∂η‖² of every draw, with the batch shape of q.

    For logits (z − p)², summed. For a loc and a log scale, with ε = (z − loc) / scale and s = −∂ log q / ∂ε, which is ε
    of a normal, sign ε of a Laplace and tanh(ε / 2) of a logistic: (s / scale)² + (ε s − 1)².
    """
    (base, depth, mask), z = peel(stop_gradient(q["fn"])), fixed(q["value"])
    parts: Any = base
    if isinstance(base, (BernoulliLogits, BernoulliProbs, OneHotCategorical)):
        squares = (z - parts.probs) ** 2
        depth += isinstance(base, OneHotCategorical)
    elif isinstance(base, (Normal, Laplace, Logistic)):
        noise = (z - parts.loc) / parts.scale
        slope = (
            noise if isinstance(base, Normal) else jnp.sign(noise) if isinstance(base, Laplace) else jnp.tanh(noise / 2)
        )
        squares = (slope / parts.scale) ** 2 + (noise * slope - 1) ** 2
    else:
        return None
    squares = squares.sum(tuple(range(-depth, 0)))
    return squares if mask is True else jnp.where(mask, squares, 0.0)


def _vector(value: Array, site: Mapping[str, Any], plates: Set[str]) -> Array:
    """(particles, rows, D) or (rows, D) of a value of the site."""
    value = jnp.broadcast_to(value, site["fn"].shape())
    batch = value.ndim - site["fn"].event_dim
    kept = sorted(batch + frame.dim for frame in site["cond_indep_stack"] if frame.name in plates)
    rest = [dim for dim in range(value.ndim) if dim not in kept]
    return value.transpose(*kept, *rest).reshape(*(value.shape[dim] for dim in kept), -1)


def _moments(p: Mapping[str, Any], q: Mapping[str, Any], plates: Set[str]) -> Array | None:
    bases: list[Any] = [peel(site["fn"])[0] for site in (q, p)]
    if not all(isinstance(base, Normal) for base in bases):
        return None
    parts = [
        _vector(part, site, plates) for site, base in zip((q, p), bases, strict=True) for part in (base.loc, base.scale)
    ]
    return jnp.stack(jnp.broadcast_arrays(*parts))
