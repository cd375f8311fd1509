"""The terms that only some objectives need: `Objective.needs` names them, `engines/terms.py` says what they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from typing import Any

import torch
from pyro.distributions import Logistic
from torch import Tensor
from torch.distributions import Bernoulli, Laplace, Normal, OneHotCategorical

from .analytic import peel
from .arrays import stop_gradient


def needed(p: Mapping[str, Any], q: Mapping[str, Any], needs: Set[str], plates: Set[str]) -> dict[str, Any]:
    """Field of `Terms` → its value for one latent site, before it is summed to one number a datum.

    plates: the names of the plates whose dimensions a draw keeps; what is left becomes its last one.
    """
    fields: dict[str, Callable[[], Tensor | None]] = {
        "path": lambda: stop_gradient(q["fn"]).log_prob(q["value"]),
        "score": lambda: q["fn"].log_prob(q["value"].detach()),
        "score_norm": lambda: _score_norm(q),
        "latent": lambda: _vector(q["value"], q, plates),
        "prior_draw": lambda: _vector(p["fn"].rsample() if p["fn"].has_rsample else p["fn"].sample(), p, plates),
        "normal": lambda: _moments(p, q, plates),
    }
    found = {name: make() for name, make in fields.items() if name in needs}
    return {name: value for name, value in found.items() if value is not None}


def _score_norm(q: Mapping[str, Any]) -> Tensor | None:
    """‖∂ log q / ∂η‖² of every draw, with the batch shape of q.

    For logits (z − p)², summed. For a loc and a log scale, with ε = (z − loc) / scale and s = −∂ log q / ∂ε, which is ε
    of a normal, sign ε of a Laplace and tanh(ε / 2) of a logistic: (s / scale)² + (ε s − 1)².
    """
    (base, depth), z = peel(q["fn"]), q["value"].detach()
    if isinstance(base, (Bernoulli, OneHotCategorical)):
        squares = (z - base.probs.detach()) ** 2
        depth += isinstance(base, OneHotCategorical)
    elif isinstance(base, (Normal, Laplace, Logistic)):
        parts: Any = base
        scale = parts.scale.detach()
        noise = (z - parts.loc.detach()) / scale
        slope = noise if isinstance(base, Normal) else noise.sign() if isinstance(base, Laplace) else (noise / 2).tanh()
        squares = (slope / scale) ** 2 + (noise * slope - 1) ** 2
    else:
        return None
    return squares.sum(tuple(range(-depth, 0))) if depth else squares


def _vector(value: Tensor, site: Mapping[str, Any], plates: Set[str]) -> Tensor:
    """(particles, rows, D) or (rows, D) of a value of the site."""
    value = value.expand(site["fn"].shape())
    batch = value.dim() - len(site["fn"].event_shape)
    kept = sorted(batch + frame.dim for frame in site["cond_indep_stack"] if frame.name in plates)
    rest = [dim for dim in range(value.dim()) if dim not in kept]
    return value.permute(*kept, *rest).reshape(*(value.shape[dim] for dim in kept), -1)


def _moments(p: Mapping[str, Any], q: Mapping[str, Any], plates: Set[str]) -> Tensor | None:
    bases = [peel(site["fn"])[0] for site in (q, p)]
    if not all(isinstance(base, Normal) for base in bases):
        return None
    parts = [
        _vector(part, site, plates) for site, base in zip((q, p), bases, strict=True) for part in (base.loc, base.scale)
    ]
    return torch.stack(torch.broadcast_tensors(*parts))
