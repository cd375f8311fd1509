"""Divergences of the aggregate posterior q(z) = mean of q(z | x) from the prior, between draws of one batch.

They look at the batch as a whole: O(B²), and no bound on log p(x). Filler rows count in none of them.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from ...engines.arrays import namespace
from ...engines.terms import Terms
from .base import Objectives


class InfoVAE(Objectives):
    """−E_q log p(x | z) + (1 − α) KL + (α + λ − 1) D(q(z), p(z)) (Zhao et al. 2019); α = 1 is the WAE (Tolstikhin et al.).

    D, by draws of the batch: "mmd", the maximum mean discrepancy, unbiased (U-statistic, may be below 0), with the
    kernel "imq", C / (C + ‖·‖²), or "rbf", exp(−‖·‖² / C), C = 2 D · bandwidth²; "sliced_wasserstein", squared, over
    `projections` fixed directions, biased upwards by the batch's size; "energy", the energy distance, unbiased. No
    bound. `weight` multiplies the KL.
    """

    shorthand: ClassVar[str] = "strength"

    kind: Literal["info_vae"] = "info_vae"
    alpha: float = Field(default=0.0, le=1)
    strength: NonNegativeFloat = Field(default=10.0, description="λ")
    distance: Literal["mmd", "sliced_wasserstein", "energy"] = "mmd"
    kernel: Literal["imq", "rbf"] = "imq"
    bandwidth: PositiveFloat = 1.0
    projections: PositiveInt = 50

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"latent", "prior_draw"})

    def loss(self, terms: Terms, weight: Any) -> Any:
        total = terms.mean(-terms.reconstruction())
        for site in terms.log_posterior:
            if self.alpha < 1:
                total = total + weight * (1 - self.alpha) * terms.mean(terms.kl_of(site))
            if site in terms.latent:
                pair = (_first(terms.latent[site]), _first(terms.prior_draw[site]))
                total = total + (self.alpha + self.strength - 1) * self._distance(*pair, terms.weight)
        return total

    def _distance(self, z: Any, prior: Any, rows: Any) -> Any:
        """A scalar from (B, D) and (B, D); rows (B,) is 0 for fillers."""
        if self.distance == "sliced_wasserstein":
            return self._sliced(z, prior, rows)
        between = rows[:, None] * rows[None]
        within = between * namespace(rows).like(1.0 - np.eye(len(rows)), rows)
        count, pairs = between.sum(), within.sum().clip(min=1.0)
        if self.distance == "energy":
            near = [(self._norm(a, b) * mask).sum() for a, b, mask in _three(z, prior, within, between)]
            return 2 * near[2] / count - (near[0] + near[1]) / pairs
        near = [(self._kernel(a, b) * mask).sum() for a, b, mask in _three(z, prior, within, between)]
        return (near[0] + near[1]) / pairs - 2 * near[2] / count

    def _kernel(self, a: Any, b: Any) -> Any:
        scale = 2.0 * a.shape[-1] * self.bandwidth**2
        squares = _squares(a, b)
        return scale / (scale + squares) if self.kernel == "imq" else namespace(a).exp(-squares / scale)

    def _norm(self, a: Any, b: Any) -> Any:
        return namespace(a).sqrt(_squares(a, b) + 1e-12)

    def _sliced(self, z: Any, prior: Any, rows: Any) -> Any:
        xp = namespace(z)
        directions = np.random.default_rng(0).standard_normal((z.shape[-1], self.projections))
        directions = xp.like(directions / np.linalg.norm(directions, axis=0), z)
        ours, theirs = (xp.sort((draw * rows[:, None]) @ directions, 0) for draw in (z, prior))
        return ((ours - theirs) ** 2).sum() / (self.projections * rows.sum())


def _three(z: Any, prior: Any, within: Any, between: Any) -> tuple[tuple[Any, Any, Any], ...]:
    return (z, z, within), (prior, prior, within), (z, prior, between)


def _squares(a: Any, b: Any) -> Any:
    return ((a[:, None] - b[None]) ** 2).sum(-1)


def _first(draws: Any) -> Any:
    """One draw a row: (B, D)."""
    return draws[0] if draws.ndim > 2 else draws
