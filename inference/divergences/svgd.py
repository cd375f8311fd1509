"""Amortised Stein variational gradient descent: the guide draws particles, and follows where they would move."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
from pydantic import Field

from ...engines.arrays import namespace
from ...engines.terms import Sides, Terms
from .base import Objectives, particles_first

TINY = 1e-30
"""The least squared bandwidth: particles that coincide do not push each other."""


class SVGD(Objectives):
    """Amortised Stein variational gradient descent (Feng, Wang & Liu 2017; for VAEs Pu et al. 2017), S draws z of a datum:

        model: −(1/S) Σ_i (log p(x | z_i) + weight · log p(z_i));   guide: −(1/S) Σ_i φ(z_i) · z_i, with φ held fixed,
        φ(z) = (1/S) Σ_j k(z_j, z) ∇(log p(x | z_j) + weight · log p(z_j)) + weight · ∇_{z_j} k(z_j, z).

    φ is the direction in the RKHS of k that lowers −E_q log p(x | z) + weight · KL(q ‖ p) fastest (Liu & Wang 2016); all
    latents of a datum together are one z. k = exp(−‖·‖² / h), h = med² / log S, med the median distance of two of the
    particles. It asks no density of q, and bounds nothing itself; what is reported is the negative sampled ELBO. φ of S
    particles is biased inwards by O(1/S), for each is drawn to where p is large and does not push itself away: a normal
    q comes to rest at the posterior's mean, with 0.50 of its variance for S = 8, 0.64 for 16, 0.86 for 64 (Z = 1). S
    draws cost one pass of the encoder, two of the decoder for each, one more backward, and S² distances.
    """

    kind: Literal["svgd"] = "svgd"
    particles: int = Field(default=8, ge=2)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"latent", "joint_score"})

    def loss(self, terms: Terms, weight: Any) -> Any:
        sites = sorted(terms.joint_score)
        xp = namespace(terms.weight)
        z = xp.concatenate([terms.latent[site] for site in sites], -1)
        likelihood, prior = xp.concatenate([terms.joint_score[site] for site in sites], -1)
        direction = stein_direction(xp.stop_gradient(z), xp.stop_gradient(likelihood + weight * prior), weight)
        joint = terms.reconstruction() + weight * sum(terms.log_prior.values(), 0.0)
        return Sides(self.reported(terms, weight), -terms.mean(joint), -(direction * z).sum(-1).mean(0))

    def reported(self, terms: Terms, weight: Any) -> Any:
        return -particles_first(terms.log_weight(weight)).mean(0)


def stein_direction(z: Any, score: Any, weight: Any = 1.0) -> Any:
    """φ at each of the particles z (S, B, D) of every datum, from ∇ log p at them, `score`, both (S, B, D)."""
    xp = namespace(z)
    apart = z[:, None] - z[None]
    squares = (apart**2).sum(-1)
    distances = xp.sort(xp.sqrt(squares[np.triu_indices(len(z), 1)]), 0)
    middle = 0.5 * (distances[(len(distances) - 1) // 2] + distances[len(distances) // 2])
    bandwidth = (middle**2).clip(min=TINY) / math.log(len(z))
    kernel = xp.exp(-squares / bandwidth)[..., None]
    return (kernel * (score[:, None] - 2 * weight * apart / bandwidth[:, None])).mean(0)
