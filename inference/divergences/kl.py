"""The ELBO and its relatives: KL with a weight, free bits, a target rate, a skewed Jensen–Shannon, Fisher."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field, NonNegativeFloat, PositiveFloat, model_validator

from ...engines.arrays import namespace
from ...engines.terms import Sides, Terms
from ...models.errors import BadInput
from ...models.spec import Spec
from .base import Objectives, particles_first


class FreeBits(Spec):
    """A floor under the KL, below which it costs nothing more and gets no gradient (Kingma et al. 2016; Li et al. 2019).

    nats: the floor of a whole sentence. per "sentence": max(nats, Σ_j KL_j); per "dimension": Σ_j max(nats / D, KL_j);
    both for every sentence by itself. per "batch": Σ_j max(nats / D, mean of KL_j over the batch), Kingma's own. What is
    reported as KL is always the plain one.
    """

    nats: PositiveFloat
    per: Literal["dimension", "sentence", "batch"] = "dimension"

    def floored(self, kl: Any, rows: Any = None) -> Any:
        """KL of one site, (…, B, D), to (…, B); `rows` (B,) is 0 where a row is filler, None: all count."""
        if self.per == "sentence":
            return kl.sum(-1).clip(min=self.nats)
        floor = self.nats / kl.shape[-1]
        if self.per == "dimension":
            return kl.clip(min=floor).sum(-1)
        xp = namespace(kl)
        mean = kl.mean(-2) if rows is None else (kl * rows[:, None]).sum(-2) / rows.sum()
        return xp.where(mean[..., None, :] > floor, kl, floor + 0.0 * kl).sum(-1)


class KL(Objectives):
    """−E_q log p(x | z) + weight · KL(q ‖ p): the negative ELBO, so a bound on log p(x) from below at weight 1.

    Unbiased with any number of particles. With free bits the objective is no bound; the unweighted ELBO is logged
    beside it all the same. estimator (Kingma & Welling 2014; Roeder et al. 2017; Williams 1992):

    - "analytic": the KL's formula where one is registered, else log q − log p at the draw (estimator B, else A);
    - "sampled": log q − log p at the draw, always (estimator A);
    - "stl": sampled, and the guide's gradient through z alone; without variance where q is the posterior;
    - "score": for draws without a pathwise gradient: (log w − baseline) ∇ log q;
    - "enumeration": Σ_z q(z | x) over every value of one discrete latent, Z one-hot or 2^Z binary, at most 4096: the
      value and its gradient without variance. Costs a decoder pass a value; `particles` is not read.

    The baseline of "score", none of which adds a bias, for each has no part in its own particle's draw:

    - "others": the mean of the other particles' log w (Mnih & Rezende 2016); none for a single particle;
    - "optimal": E[log w · s²] / E[s²] over the other particles, s² = ‖∇ log q‖² by the parameters of the family, the
      constant of least variance where the network's Jacobian is the identity (Ranganath et al. 2014);
    - "running": the mean of log w over the steps before, which counts `decay` of a step less at every step, from 0;
    - "none".
    """

    bounds: ClassVar[str] = "below"
    shorthand: ClassVar[str] = "weight"

    kind: Literal["kl"] = "kl"
    estimator: Literal["analytic", "sampled", "stl", "score", "enumeration"] = "analytic"
    free_bits: FreeBits | None = None
    baseline: Literal["others", "optimal", "running", "none"] = Field(
        default="others", description='of the estimator "score"'
    )
    decay: float = Field(default=0.9, ge=0, lt=1, description="of the running baseline, a step")

    @model_validator(mode="after")
    def _fits(self) -> KL:
        if self.baseline != "others" and self.estimator != "score":
            raise ValueError(f'the baseline {self.baseline!r} is of estimator = "score", not of {self.estimator!r}')
        if self.decay != 0.9 and self.baseline != "running":
            raise ValueError(f'decay is of the baseline "running", not of {self.baseline!r}')
        if self.baseline == "optimal" and self.particles == 1:
            raise ValueError('the baseline "optimal" is an average over other particles: particles = 2 would be right')
        return self

    @property
    def needs(self) -> frozenset[str]:
        needs = {"stl": {"path"}, "score": {"score"}, "enumeration": {"enumeration"}}.get(self.estimator, set())
        return frozenset(needs | ({"score_norm"} if self.baseline == "optimal" else set()))

    def carried(self) -> dict[str, float]:
        return {"baseline": 0.0} if self.baseline == "running" else {}

    def adapted(self, carried: Mapping[str, float], info: Mapping[str, float]) -> dict[str, float]:
        if self.baseline != "running":
            return {}
        log_weight = -info["objective"] / info["rows"]
        return {"baseline": self.decay * carried["baseline"] + (1 - self.decay) * log_weight}

    @property
    def pathwise(self) -> bool:
        return self.estimator not in ("score", "enumeration")

    @property
    def additive(self) -> bool:
        return self.estimator != "score" and self.free_bits is None

    def loss(self, terms: Terms, weight: Any) -> Any:
        if self.estimator not in ("analytic", "enumeration"):
            return self._sampled(terms, weight)
        total = -terms.reconstruction()
        for site in terms.log_posterior:
            total = total + weight * self._kl(terms, site)
        return terms.mean(total) + (weight > 0) * self._of_choices(terms, total)

    def _of_choices(self, terms: Terms, total: Any) -> Any:
        """0, whose gradient is what the total (S, B) has through `terms.choice`, by the score and the other particles.

        At weight 0 it is left out: no share has a price there, and its noise delays what the decoder is to learn first.
        """
        if not terms.choice:
            return 0.0
        xp, score = namespace(total), particles_first(sum(terms.choice.values(), 0.0))
        signal = xp.stop_gradient(particles_first(total))
        found = ((signal - self._of_others(terms, signal)) * score).mean(0)
        return found - xp.stop_gradient(found)

    def _kl(self, terms: Terms, site: str) -> Any:
        sampled = terms.kl_of(site) if terms.share is None else terms.mean(terms.kl_of(site))
        if self.free_bits is None:
            return sampled
        kl = terms.kl[site] if site in terms.kl else sampled[..., None]
        return self.free_bits.floored(kl, terms.weight)

    def _sampled(self, terms: Terms, weight: Any) -> Any:
        weight, running = (weight["weight"], weight["baseline"]) if isinstance(weight, Mapping) else (weight, 0.0)
        log_weight = particles_first(terms.log_weight(weight))
        value = -log_weight.mean(0)
        if self.estimator == "sampled":
            return value
        if self.estimator == "stl":
            return Sides(value, value, -terms.mean(terms.log_weight(weight, terms.path)))
        signal = namespace(log_weight).stop_gradient(log_weight)
        baseline = running if self.baseline == "running" else self._of_others(terms, signal)
        score = particles_first(sum(terms.score.values(), 0.0))
        # ∇ E_q[−log w] has a term −E_q[weight · ∇ log q] of its own, whose expectation is 0: left out
        return Sides(value, value, -((signal - baseline) * score).mean(0))

    def _of_others(self, terms: Terms, signal: Any) -> Any:
        """The baseline of each particle from the others', (S, B)."""
        if self.baseline == "none" or len(signal) == 1:
            return 0.0
        if self.baseline == "others":
            return (signal.sum(0) - signal) / (len(signal) - 1)
        for site in terms.score:
            if site not in terms.score_norm:
                raise BadInput(
                    'the baseline "optimal" knows the score of Bernoulli, categorical, normal, Laplace and logistic '
                    f'latents only, and {site!r} is of another family: use baseline = "others"'
                )
        norm = namespace(signal).stop_gradient(particles_first(sum(terms.score_norm.values(), 0.0)))
        others = namespace(norm).like(1.0 - np.eye(len(norm)), norm)  # differences of sums would cancel
        return others @ (norm * signal) / (others @ norm).clip(min=1e-30)


class TargetRate(Objectives):
    """−E_q log p(x | z) + strength · |KL(q ‖ p) − nats|: a KL held at C nats (Burgess et al. 2018).

    No bound, unless the KL is at its target. `weight` is not read: strength takes its place.
    """

    shorthand: ClassVar[str] = "nats"

    kind: Literal["target_rate"] = "target_rate"
    nats: NonNegativeFloat = Field(description="C, the KL of a datum that costs nothing")
    strength: PositiveFloat = 1.0

    def loss(self, terms: Terms, weight: Any) -> Any:
        xp, kl = namespace(terms.weight), terms.total_kl()
        return terms.mean(-terms.reconstruction() + self.strength * xp.abs(kl - self.nats))


class MinimumRate(Objectives):
    """max ELBO subject to KL(q ‖ p) ≥ nats, on average over the data (Pelsmaeker & Aziz 2020), by its Lagrangian

        −E_q log p(x | z) + weight · KL + u (nats − KL),   u ← max(0, u + step_size (nats − KL)) after every step,

    u starting at 0 and KL the batch's. Its own value bounds nothing, for u moves. What is validated is
    −E_q log p(x | z) + weight · max(KL, nats), the same for every u: a bound from below where the rate is reached.
    Costs what the ELBO costs, and a wait for the device at every step.
    """

    shorthand: ClassVar[str] = "nats"

    kind: Literal["minimum_rate"] = "minimum_rate"
    nats: PositiveFloat = Field(description="r, the least KL of a datum, on average")
    step_size: PositiveFloat = Field(default=0.01, description="of u, per nat that the KL lacks")

    def carried(self) -> dict[str, float]:
        return {"multiplier": 0.0}

    def adapted(self, carried: Mapping[str, float], info: Mapping[str, float]) -> dict[str, float]:
        kl = sum(value for key, value in info.items() if key.startswith("kl/")) / info["rows"]
        return {"multiplier": max(0.0, carried["multiplier"] + self.step_size * (self.nats - kl))}

    def loss(self, terms: Terms, weight: Any) -> Any:
        u = weight["multiplier"]
        return terms.mean(-terms.reconstruction() + (weight["weight"] - u) * terms.total_kl()) + u * self.nats

    def reported(self, terms: Terms, weight: Any) -> Any:
        kl = terms.mean(terms.total_kl())
        lacking = (self.nats - (kl * terms.weight).sum() / terms.weight.sum()).clip(min=0.0)
        return terms.mean(-terms.reconstruction()) + weight * (kl + lacking)


class GeometricJensenShannon(Objectives):
    """−E_q log p(x | z) + weight · JS^G_α(q ‖ p) (Deasy et al. 2020, equation 11), closed for normal q and p.

    G_α has precision α Λ_q + (1 − α) Λ_p;  JS = (1 − α) KL(q ‖ G) + α KL(p ‖ G): α → 0 is KL(q ‖ p), α → 1 is
    KL(p ‖ q). No bound, but for α = 0. Its gradient is exact but for the draw in the reconstruction.
    """

    shorthand: ClassVar[str] = "alpha"

    kind: Literal["geometric_jensen_shannon"] = "geometric_jensen_shannon"
    alpha: float = Field(default=0.5, ge=0, le=1)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"normal"})

    def loss(self, terms: Terms, weight: Any) -> Any:
        total = -terms.reconstruction()
        for site in terms.log_posterior:
            total = total + weight * self._divergence(normal_moments(self.kind, terms, site))
        return terms.mean(total)

    def _divergence(self, moments: Any) -> Any:
        """(4, …, B, D) to (…, B)."""
        m, s, n, t = moments
        xp, alpha = namespace(m), self.alpha
        precision = alpha / s**2 + (1 - alpha) / t**2
        loc, scale = (alpha * m / s**2 + (1 - alpha) * n / t**2) / precision, precision**-0.5

        def kl(a: Any, b: Any) -> Any:
            return xp.log(scale / b) + 0.5 * ((b / scale) ** 2 + ((a - loc) / scale) ** 2 - 1)

        return ((1 - alpha) * kl(m, s) + alpha * kl(n, t)).sum(-1)


class Fisher(Objectives):
    """−E_q log p(x | z) + weight · F, F = E_q ‖∇ log q(z | x) − ∇ log p(z)‖², closed for normal q and p.

    With q = N(m, s²), p = N(n, t²) a dimension adds (s / t² − 1 / s)² + (m − n)² / t⁴ (Hyvärinen 2005 for F). It is
    no bound on log p(x) at any weight, nor in nats: F has the unit 1 / z². Exact but for the draw in the reconstruction.
    """

    shorthand: ClassVar[str] = "weight"

    kind: Literal["fisher"] = "fisher"

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"normal"})

    def loss(self, terms: Terms, weight: Any) -> Any:
        total = -terms.reconstruction()
        for site in terms.log_posterior:
            m, s, n, t = normal_moments(self.kind, terms, site)
            total = total + weight * ((s / t**2 - 1 / s) ** 2 + ((m - n) / t**2) ** 2).sum(-1)
        return terms.mean(total)


def normal_moments(kind: str, terms: Terms, site: str) -> Any:
    """(4, …, B, D): `Terms.normal` of a site.

    Raises:
        BadInput: q or p is no normal there.
    """
    if site not in terms.normal:
        raise BadInput(
            f"{kind} has a formula for normal q and p only, and {site!r} is not: "
            "use the kinds diagonal_normal and standard_normal, or another divergence"
        )
    return terms.normal[site]
