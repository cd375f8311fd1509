"""Bounds from importance weights w = p(x, z) / q(z | x), each per datum over its own particles.

Orders combine as  ELBO ≤ IWAE_S ≤ log p(x) ≤ CUBO,  in expectation and up to the Monte Carlo bias that each names.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field, PositiveInt, field_validator, model_validator

from ...engines.arrays import namespace
from ...engines.terms import Sides, Terms
from .base import Objectives, particles_first


def log_mean_exp(x: Any) -> Any:
    """(S, B) to (B,)."""
    return namespace(x).logsumexp(x, 0) - math.log(len(x))


class IWAE(Objectives):
    """−E log (1/S) Σ w_s: the importance-weighted bound, from below, tighter with S (Burda et al. 2016).

    The estimate is unbiased for the bound of S particles. S draws cost S decoder passes and one of the encoder.
    estimator: "pathwise" gives the guide a signal that fades as S grows; "stl" drops its score term at the cost of a
    bias; "dreg" (Tucker et al. 2019) is unbiased and its signal-to-noise grows with S.
    """

    bounds: ClassVar[str] = "below"
    weighs: ClassVar[bool] = True

    kind: Literal["iwae"] = "iwae"
    particles: PositiveInt = 8
    estimator: Literal["pathwise", "stl", "dreg"] = "pathwise"

    @property
    def needs(self) -> frozenset[str]:
        return frozenset() if self.estimator == "pathwise" else frozenset({"path"})

    def loss(self, terms: Terms, weight: Any) -> Any:
        log_weight = particles_first(terms.log_weight(weight))
        value = -log_mean_exp(log_weight)
        if self.estimator == "pathwise":
            return value
        xp = namespace(log_weight)
        share = xp.stop_gradient(xp.softmax(log_weight, 0))
        share = share if self.estimator == "stl" else share**2
        return Sides(value, value, -(share * particles_first(terms.log_weight(weight, terms.path))).sum(0))


class Renyi(Objectives):
    """−1/(1 − α) log (1/S) Σ w_s^{1 − α}: the variational Rényi bound (Li & Turner 2016).

    α → 1 is the ELBO, α = 0 the IWAE bound; from below for α ≥ 0, from above for α < 0 and S → ∞ only: the Monte Carlo
    estimate is biased (Jensen), downwards for α < 1. S draws cost S decoder passes. estimator as for IWAE. With α < 0 and
    many particles the guide leaves the posterior, for that raises a bound from above: `CUBO` of order 1 − α lowers it.
    """

    bounds: ClassVar[str] = "below"
    shorthand: ClassVar[str] = "alpha"
    weighs: ClassVar[bool] = True

    kind: Literal["renyi"] = "renyi"
    alpha: float = 0.5
    particles: PositiveInt = 8
    estimator: Literal["pathwise", "stl"] = "pathwise"

    @field_validator("alpha")
    @classmethod
    def _not_one(cls, alpha: float) -> float:
        if alpha == 1.0:
            raise ValueError('alpha = 1 divides by 1 − alpha: its limit is the ELBO, kind = "kl"')
        return alpha

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"path"}) if self.estimator == "stl" else frozenset()

    def loss(self, terms: Terms, weight: Any) -> Any:
        order = 1.0 - self.alpha
        log_weight = particles_first(terms.log_weight(weight))
        value = -log_mean_exp(order * log_weight) / order
        if self.estimator == "pathwise":
            return value
        xp = namespace(log_weight)
        share = xp.stop_gradient(xp.softmax(order * log_weight, 0))
        return Sides(value, value, -(share * particles_first(terms.log_weight(weight, terms.path))).sum(0))


class CUBO(Objectives):
    """The guide minimises (1/n) log (1/S) Σ w_s^n, the χ upper bound on log p(x) (Dieng et al. 2017); n = 2 is χ².

    An upper bound says nothing good of a model: the model's side follows the importance-weighted bound of the same
    draws. The Monte Carlo estimate is biased downwards and its variance is large where q has lighter tails than the
    posterior: it bounds as S → ∞. The value reported is CUBO itself, an upper bound where others report one of −log p(x).

    The guide's gradient is not that of the estimate, which a flexible q makes small by leaving the posterior, but the
    doubly reparameterised one of E w^n (as Tucker et al. 2019 derive it for n = 1), with the same limit: draws move to
    where w is larger, by (n weight − 1) w^n / Σ w^n.
    """

    bounds: ClassVar[str] = "above"
    shorthand: ClassVar[str] = "order"
    weighs: ClassVar[bool] = True

    kind: Literal["cubo"] = "cubo"
    order: float = Field(default=2.0, gt=1, description="n")
    particles: PositiveInt = 16

    @model_validator(mode="after")
    def _fits(self) -> CUBO:
        if min(self.weight.at(0), self.weight.at(math.inf)) * self.order <= 1:
            raise ValueError(
                f"the bound is from above, and the guide drawn to the posterior, while order · weight > 1: a weight "
                f"that stays above {1 / self.order:g} would be right"
            )
        return self

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"path"})

    def loss(self, terms: Terms, weight: Any) -> Any:
        log_weight = particles_first(terms.log_weight(weight))
        xp = namespace(log_weight)
        upper = log_mean_exp(self.order * log_weight) / self.order
        share = (1 - self.order * weight) * xp.stop_gradient(xp.softmax(self.order * log_weight, 0))
        guide = (share * particles_first(terms.log_weight(weight, terms.path))).sum(0)
        return Sides(upper, -log_mean_exp(log_weight), guide)


class TVO(Objectives):
    """The thermodynamic variational objective (Masrani et al. 2019): −Σ_k (β_{k+1} − β_k) E_{π_β_k}[log w].

    π_β ∝ q^{1−β} p^β. "lower": left Riemann sum, a bound from below; "upper": right, from above; both up to the bias of
    self-normalised weights, which vanishes as S grows. One partition, lower, is the ELBO. The gradient is the
    covariance estimator: no pathwise gradient is needed, so discrete latents may be trained with it.

    Of "upper" the guide makes the bound itself small, which is what is reported, and the model's side follows the
    importance-weighted bound of the same draws, as with `CUBO`.
    """

    bounds: ClassVar[str] = "below"
    shorthand: ClassVar[str] = "partitions"
    weighs: ClassVar[bool] = True

    kind: Literal["tvo"] = "tvo"
    partitions: PositiveInt = Field(default=5, description="K")
    first: float = Field(default=0.05, gt=0, lt=1, description="β_1; the rest are equally spaced in log β")
    side: Literal["lower", "upper"] = "lower"
    particles: PositiveInt = 16

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"score"})

    @property
    def betas(self) -> tuple[float, ...]:
        """β_0 = 0 … β_K = 1."""
        inner = np.geomspace(self.first, 1.0, self.partitions) if self.partitions > 1 else np.ones(1)
        return (0.0, *map(float, inner))

    @property
    def pathwise(self) -> bool:
        return False

    def loss(self, terms: Terms, weight: Any) -> Any:
        log_weight = particles_first(terms.log_weight(weight))
        xp, betas = namespace(log_weight), self.betas
        signal = xp.stop_gradient(log_weight)
        log_q = particles_first(sum(terms.score.values(), 0.0))
        value, model, guide = 0.0, 0.0, 0.0
        for before, after in pairwise(betas):
            beta, step = (before if self.side == "lower" else after), after - before
            share = xp.softmax(beta * signal, 0)
            mean = (share * signal).sum(0)
            surprise = share * (signal - mean)
            value = value - step * mean
            model = model - step * ((share + beta * surprise) * log_weight).sum(0)
            guide = guide - step * (((1 - beta * weight) * surprise - weight * share) * log_q).sum(0)
        if self.side == "upper":
            return Sides(-value, -log_mean_exp(log_weight), -guide)
        return Sides(value, model, guide)
