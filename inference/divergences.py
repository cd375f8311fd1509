"""Divergences and bounds: small pure functions of `Terms`, per datum. One class each; another one is another file's worth.

A divergence says what it bounds and from which side, and `loss(terms, weight) → (B,)` is what training minimises.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import PositiveFloat, PositiveInt

from ..engines import load
from ..engines.protocol import Objective
from ..engines.terms import Terms
from ..models.spec import Spec
from .schedules import Constant, NumberOrSchedule


class FreeBits(Spec):
    """A floor under the KL, below which it costs nothing more and gets no gradient (Kingma et al. 2016; Li et al. 2019).

    nats: the floor of a whole sentence. per "sentence": max(nats, Σ_j KL_j); per "dimension": Σ_j max(nats / D, KL_j).
    Both per sentence, not per batch. What is reported as KL is always the plain one.
    """

    nats: PositiveFloat
    per: Literal["dimension", "sentence"] = "dimension"

    def floored(self, kl: Any) -> Any:
        """KL of one site, (…, D), to (…)."""
        if self.per == "dimension":
            return kl.clip(min=self.nats / kl.shape[-1]).sum(-1)
        return kl.sum(-1).clip(min=self.nats)


class KL(Spec):
    """−E_q log p(x | z) + weight · KL(q ‖ p): the negative ELBO, an upper bound on −log p(x) at weight 1.

    Unbiased with any number of particles; analytic KL where one is registered, else log q − log p at the draw. With
    free bits the objective is no bound; the unweighted ELBO is logged beside it all the same.
    """

    kind: Literal["kl"] = "kl"
    weight: NumberOrSchedule = Constant()
    free_bits: FreeBits | None = None
    particles: PositiveInt = 1

    def loss(self, terms: Terms, weight: Any) -> Any:
        """(B,) nats per datum."""
        total = -terms.reconstruction()
        for site in terms.log_posterior:
            total = total + weight * self._kl(terms, site)
        return total.mean(0) if total.ndim > 1 else total

    def _kl(self, terms: Terms, site: str) -> Any:
        if self.free_bits is None:
            return terms.kl_of(site)
        kl = terms.kl[site] if site in terms.kl else terms.kl_of(site)[..., None]
        return self.free_bits.floored(kl)

    def objective(self) -> Objective:
        return Objective(self.loss, self.particles)

    def on(self, engine: str, *, plate: str = "data", weight: float = 1.0) -> Any:
        """This divergence as the `loss=` of stock `pyro.infer.SVI` or `numpyro.infer.SVI`."""
        return load(engine).Loss(self.objective(), plate=plate, weight=weight)


Divergence = KL
