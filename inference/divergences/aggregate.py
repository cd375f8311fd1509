"""Divergences of the aggregate posterior q(z) = mean of q(z | x) from the prior, between draws of one batch.

They look at the batch as a whole: O(B²), and no bound on log p(x). Filler rows count in none of them.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from ...engines.arrays import namespace
from ...engines.terms import Terms
from .base import Objectives
from .kl import normal_moments

LAST = 1e30
"""Beyond every draw, in float32 too."""


class InfoVAE(Objectives):
    """−E_q log p(x | z) + (1 − α) KL + (α + λ − 1) D(q(z), p(z)) (Zhao et al. 2019); α = 1 is the WAE (Tolstikhin et al.).

    D, by draws of the batch: "mmd", the maximum mean discrepancy, unbiased (U-statistic, may be below 0), with the
    kernel "imq", C / (C + ‖·‖²), or "rbf", exp(−‖·‖² / C), C = 2 D · bandwidth²; "sliced_wasserstein", squared, over
    `projections` fixed directions, biased upwards by the batch's size; "energy", the energy distance, unbiased;
    "stein", the `stein_discrepancy` with the same kernels, for normal q and p. No bound. `weight` multiplies the KL.
    """

    shorthand: ClassVar[str] = "strength"

    kind: Literal["info_vae"] = "info_vae"
    alpha: float = Field(default=0.0, le=1)
    strength: NonNegativeFloat = Field(default=10.0, description="λ")
    distance: Literal["mmd", "sliced_wasserstein", "energy", "stein"] = "mmd"
    kernel: Literal["imq", "rbf"] = "imq"
    bandwidth: PositiveFloat = 1.0
    projections: PositiveInt = 50

    @model_validator(mode="after")
    def _fits(self) -> InfoVAE:
        if self.alpha + self.strength < 1:
            raise ValueError(
                f"the weight of the distance, alpha + strength - 1, is below 0: strength = {1 - self.alpha:g} or more "
                "would be right"
            )
        return self

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"latent", "normal" if self.distance == "stein" else "prior_draw"})

    @property
    def additive(self) -> bool:
        return True

    def loss(self, terms: Terms, weight: Any) -> Any:
        total = terms.mean(-terms.reconstruction())
        for site in terms.log_posterior:
            if self.alpha < 1:
                total = total + weight * (1 - self.alpha) * terms.mean(terms.kl_of(site))
            if site in terms.latent:
                total = total + (self.alpha + self.strength - 1) * self._distance(terms, site)
        return total

    def _distance(self, terms: Terms, site: str) -> Any:
        """A scalar."""
        if self.distance == "stein":
            return _stein(self, terms, site)
        return self._between(_first(terms.latent[site]), _first(terms.prior_draw[site]), terms.weight)

    def _between(self, z: Any, prior: Any, rows: Any) -> Any:
        """A scalar from (B, D) and (B, D); rows (B,) is 0 for fillers."""
        if self.distance == "sliced_wasserstein":
            return self._sliced(z, prior, rows)
        between, within = rows[:, None] * rows[None], _others(rows)
        count, pairs = between.sum(), within.sum().clip(min=1.0)
        if self.distance == "energy":
            near = [(self._norm(a, b) * mask).sum() for a, b, mask in _three(z, prior, within, between)]
            return 2 * near[2] / count - (near[0] + near[1]) / pairs
        near = [(self._kernel(a, b) * mask).sum() for a, b, mask in _three(z, prior, within, between)]
        return (near[0] + near[1]) / pairs - 2 * near[2] / count

    def _kernel(self, a: Any, b: Any) -> Any:
        return _kernel(_squares(a, b), self.kernel, _scale(a, self.bandwidth))

    def _norm(self, a: Any, b: Any) -> Any:
        return namespace(a).sqrt(_squares(a, b) + 1e-12)

    def _sliced(self, z: Any, prior: Any, rows: Any) -> Any:
        xp = namespace(z)
        directions = np.random.default_rng(0).standard_normal((z.shape[-1], self.projections))
        directions = xp.like(directions / np.linalg.norm(directions, axis=0), z)
        real = rows[:, None] > 0
        # the fillers of both come last, at one place
        ours, theirs = (xp.sort(xp.where(real, draw @ directions, LAST), 0) for draw in (z, prior))
        return ((ours - theirs) ** 2).sum() / (self.projections * rows.sum())


class Stein(Objectives):
    """−E_q log p(x | z) + weight · KSD²(q(z) ‖ p(z)), the kernelised Stein discrepancy of the aggregate posterior.

    KSD² (Liu, Lee & Jordan 2016; the kernel "imq": Gorham & Mackey 2017) asks the score of the prior and no draw from
    it: unbiased (U-statistic, may be below 0), 0 in expectation where q(z) = p(z). For normal q and p. No bound.
    """

    shorthand: ClassVar[str] = "weight"

    kind: Literal["stein"] = "stein"
    kernel: Literal["imq", "rbf"] = "imq"
    bandwidth: PositiveFloat = Field(default=1.0, description="the kernels of info_vae")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"latent", "normal"})

    def loss(self, terms: Terms, weight: Any) -> Any:
        total = terms.mean(-terms.reconstruction())
        for site in terms.log_posterior:
            total = total + weight * _stein(self, terms, site)
        return total


def stein_discrepancy(z: Any, score: Any, rows: Any, kernel: str, scale: float) -> Any:
    """KSD² of draws z (B, D) from a density of which `score` (B, D) is ∇ log p at them, a U-statistic: the mean of

    u(z, z') = k s·s' + s·∇_{z'} k + s'·∇_z k + tr ∇_z ∇_{z'} k    over pairs of rows (B,) that are no fillers.
    """
    squares = _squares(z, z)
    k = _kernel(squares, kernel, scale)
    # k = φ(‖z − z'‖²): φ' and φ''
    first, second = (-(k**2) / scale, 2 * k**3 / scale**2) if kernel == "imq" else (-k / scale, k / scale**2)
    cross, own = z @ score.T, (z * score).sum(-1)
    along = cross + cross.T - own[:, None] - own[None]  # (z − z') · (s' − s)
    u = k * (score @ score.T) + first * (2 * along - 2 * z.shape[-1]) - 4 * squares * second
    pairs = _others(rows)
    return (u * pairs).sum() / pairs.sum().clip(min=1.0)


def _stein(divergence: InfoVAE | Stein, terms: Terms, site: str) -> Any:
    _, _, loc, spread = normal_moments("the Stein discrepancy", terms, site)
    z = _first(terms.latent[site])
    score = (_first(loc) - z) / _first(spread) ** 2
    return stein_discrepancy(z, score, terms.weight, divergence.kernel, _scale(z, divergence.bandwidth))


def _kernel(squares: Any, kernel: str, scale: float) -> Any:
    return scale / (scale + squares) if kernel == "imq" else namespace(squares).exp(-squares / scale)


def _scale(z: Any, bandwidth: float) -> float:
    return 2.0 * z.shape[-1] * bandwidth**2


def _others(rows: Any) -> Any:
    """(B, B): 1 where two different rows are both real, else 0."""
    return rows[:, None] * rows[None] * namespace(rows).like(1.0 - np.eye(len(rows)), rows)


def _three(z: Any, prior: Any, within: Any, between: Any) -> tuple[tuple[Any, Any, Any], ...]:
    return (z, z, within), (prior, prior, within), (z, prior, between)


def _squares(a: Any, b: Any) -> Any:
    """Squared distances (A, B) of rows, without an array (A, B, D)."""
    return ((a**2).sum(-1)[:, None] + (b**2).sum(-1)[None] - 2 * a @ b.T).clip(min=0.0)


def _first(draws: Any) -> Any:
    """One draw a row: (B, D)."""
    return draws[0] if draws.ndim > 2 else draws
