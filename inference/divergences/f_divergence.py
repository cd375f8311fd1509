"""f-divergences between the posterior and q through one class: the guide's side of the objective; the model follows
the ELBO of the same draws.

    D_f = E_q f(p / q),  f convex, f(1) = 0;   ∇ by z's path:   −E_q[ρ(w) ∇ log w],    ρ(t) = t² f''(t)
                                               by the score:    −E_q[η(w) ∇ log q],    η(t) = t f'(t) − f(t)

with w normalised over the particles of a datum (Wang, Liu & Liu 2018, proposition 1).
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, PositiveInt, model_validator

from ...engines.arrays import namespace
from ...engines.terms import Sides, Terms
from .base import Objectives, particles_first


class FDivergence(Objectives):
    """D_f(p(z | x) ‖ q): of "forward_kl" (covers mass), "jensen_shannon", "hellinger", "total_variation", "alpha".

    Bounds nothing; self-normalised weights bias it by O(1/S). estimator "path" needs a twice differentiable f, so not
    total variation; "score" serves all. tail_adaptive: ρ from the rank of w in place of its value, whatever f: finite
    variance with any tails (Wang et al. 2018, algorithm 1). The value reported is the negative ELBO.
    """

    shorthand: ClassVar[str] = "f"
    weighs: ClassVar[bool] = True

    kind: Literal["f_divergence"] = "f_divergence"
    f: Literal["forward_kl", "jensen_shannon", "hellinger", "total_variation", "alpha"] = "forward_kl"
    alpha: float = Field(default=0.5, description='of f = "alpha": (t^α − 1 − α (t − 1)) / (α (α − 1))')
    tail_adaptive: bool = False
    estimator: Literal["path", "score"] = "path"
    particles: PositiveInt = 16

    @model_validator(mode="after")
    def _fits(self) -> FDivergence:
        if self.f == "total_variation" and self.estimator == "path" and not self.tail_adaptive:
            raise ValueError('f = "total_variation" has no second derivative: estimator = "score" would be right')
        if self.f == "alpha" and self.alpha in (0.0, 1.0):
            raise ValueError('alpha = 0 and 1 divide by zero: their limits are kind = "kl" and f = "forward_kl"')
        if self.tail_adaptive and self.estimator == "score":
            raise ValueError('tail_adaptive ranks the weights of the path: estimator = "path" would be right')
        return self

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({self.estimator})

    @property
    def pathwise(self) -> bool:
        return self.estimator == "path"

    def loss(self, terms: Terms, weight: Any) -> Any:
        log_weight = particles_first(terms.log_weight(weight))
        xp = namespace(log_weight)
        value, signal = -terms.mean(log_weight), xp.stop_gradient(log_weight)
        ratio = xp.softmax(signal, 0) * len(signal)
        if self.estimator == "score":
            factor, path = self._eta(ratio), sum(terms.score.values(), 0.0)
        else:
            factor = self._ranked(signal) if self.tail_adaptive else self._rho(ratio)
            path = terms.log_weight(weight, terms.path)
        return Sides(value, value, -(factor * particles_first(path)).mean(0))

    def value(self, log_weight: Any) -> Any:
        """The self-normalised estimate of D_f itself, (S, B) to (B,)."""
        xp = namespace(log_weight)
        t = xp.softmax(log_weight, 0) * len(log_weight)
        if self.f == "forward_kl":
            return (t * xp.log(t)).mean(0)
        if self.f == "jensen_shannon":
            return (0.5 * (t * xp.log(t) - (t + 1) * xp.log(0.5 * (t + 1)))).mean(0)
        if self.f == "hellinger":
            return (0.5 * (xp.sqrt(t) - 1) ** 2).mean(0)
        if self.f == "total_variation":
            return (0.5 * xp.abs(t - 1)).mean(0)
        alpha = self.alpha
        return ((t**alpha - 1 - alpha * (t - 1)) / (alpha * (alpha - 1))).mean(0)

    def _rho(self, t: Any) -> Any:
        if self.f == "forward_kl":
            return t
        if self.f == "jensen_shannon":
            return 0.5 * t / (t + 1)
        if self.f == "hellinger":
            return 0.25 * namespace(t).sqrt(t)
        return t**self.alpha

    def _eta(self, t: Any) -> Any:
        xp = namespace(t)
        if self.f == "forward_kl":
            return t
        if self.f == "jensen_shannon":
            return 0.5 * xp.log(0.5 * (t + 1))
        if self.f == "hellinger":
            return 0.5 * (xp.sqrt(t) - 1)
        if self.f == "total_variation":
            return 0.5 * xp.where(t > 1, 1.0 + 0.0 * t, -1.0 + 0.0 * t)
        return (t**self.alpha - 1) / self.alpha

    def _ranked(self, signal: Any) -> Any:
        """S / (particles with a weight at least this one's), with mean 1."""
        above = (signal[None] >= signal[:, None]).sum(1)
        share = 1.0 / above
        return share / share.mean(0)
