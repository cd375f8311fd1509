"""Reweighted wake–sleep: the two sides descend different divergences, and no gradient passes through a draw."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, NonNegativeFloat, PositiveInt

from ...engines.arrays import namespace
from ...engines.terms import Sides, Terms
from .base import Objectives, particles_first
from .importance import log_mean_exp


class ReweightedWakeSleep(Objectives):
    """Wake-θ and wake-φ (Bornschein & Bengio 2015; Le et al. 2019): with w̄ = w / Σ w over S draws of a datum,

        model: −log (1/S) Σ w_s, the importance-weighted bound, from below;   guide: −Σ_s w̄_s log q(z_s | x),

    the inclusive KL(p(z | x) ‖ q). Self-normalised, so the guide's gradient is biased by O(1/S). Latents may be
    discrete. S draws cost S decoder passes.

    sleep: the share of sleep-φ (Hinton et al. 1995) in the guide's loss, (1 − sleep) wake-φ + sleep · −log q(z | x) of
    a z and x that the model draws: without bias, but it fits the guide to the model's data. It costs one more pass of
    the guide and a draw of the data a row, for sentences word by word.
    """

    bounds: ClassVar[str] = "below"
    weighs: ClassVar[bool] = True

    kind: Literal["reweighted_wake_sleep"] = "reweighted_wake_sleep"
    particles: PositiveInt = 16
    sleep: NonNegativeFloat = Field(default=0.0, le=1)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"score"}) if not self.sleep else frozenset({"score", "dream"})

    @property
    def pathwise(self) -> bool:
        return False

    def loss(self, terms: Terms, weight: Any) -> Any:
        log_weight = particles_first(terms.log_weight(weight))
        xp = namespace(log_weight)
        share = xp.stop_gradient(xp.softmax(log_weight, 0))
        value = -log_mean_exp(log_weight)
        wake = -(share * particles_first(sum(terms.score.values(), 0.0))).sum(0)
        if not self.sleep:
            return Sides(value, value, wake)
        return Sides(value, value, (1 - self.sleep) * wake - self.sleep * sum(terms.dream.values(), 0.0))
