"""What an objective is made of: the two traces, per datum and per site.

Letters: S particles, B rows of the batch, D event dimensions of a latent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from typing import Any, NamedTuple

Array = Any
NOTHING: Mapping[str, Any] = {}


class Sides(NamedTuple):
    """A loss whose two sides minimise different things, per datum (B,).

    value: what is reported. model: what the model's parameters minimise. guide: what the guide's do.
    """

    value: Array
    model: Array
    guide: Array


class Terms(NamedTuple):
    """The two traces of a pair, per datum and site, unscaled, in nats. A pytree; torch, JAX or NumPy arrays.

    Attributes:
        log_likelihood: observed site → (S, B).
        log_prior: latent site → log p(z), (S, B).
        log_posterior: latent site → log q(z), (S, B).
        kl: latent site with a registered analytic KL → KL(q‖p), (B, D) or (S, B, D): elementwise where the family
            factorises, else D = 1.
        choice: latent site → log q of the discrete choices that its draw has no gradient in, (S, B), in training; others are
            missing.
        weight: (B,), 0 marks a filler row.

    What only some objectives need, and name in `Objective.needs`:
        path: latent site → log q(z) with the parameters of q held fixed: its gradient is the path's, through z alone.
        score: latent site → log q(z) with z held fixed: its gradient is the score function.
        score_norm: latent site → ‖∂ log q(z) / ∂η‖², η the logits of a Bernoulli or a categorical, loc and log scale of a
            normal, a Laplace or a logistic; other families are missing.
        latent: latent site of the data plate → z, (B, D) or (S, B, D). prior_draw: draws from p(z) beside them.
        joint_score: latent site → ∇_z log p(x | z) and ∇_z log p(z) at the draws, without gradients of their own,
            stacked (2, …, B, D). For several latents, of all observed and of all latent sites.
        normal: latent site with normal q and p → loc and scale of q, loc and scale of p, stacked (4, …, B, D).
        dream: latent site → log q(z | x) of a z and x that the model drew at fixed parameters, (B,).

    evidence: log Ẑ of a particle filter over S particles, (B,); the other tables are then of its particles.

    share: (S, B), what each particle counts in an expectation under q, where particles are all values of the latent and
        not draws (`needs` names "enumeration"); None: 1 / S.
    """

    log_likelihood: Mapping[str, Array]
    log_prior: Mapping[str, Array]
    log_posterior: Mapping[str, Array]
    kl: Mapping[str, Array]
    weight: Array
    path: Mapping[str, Array] = NOTHING
    score: Mapping[str, Array] = NOTHING
    score_norm: Mapping[str, Array] = NOTHING
    latent: Mapping[str, Array] = NOTHING
    prior_draw: Mapping[str, Array] = NOTHING
    joint_score: Mapping[str, Array] = NOTHING
    normal: Mapping[str, Array] = NOTHING
    dream: Mapping[str, Array] = NOTHING
    choice: Mapping[str, Array] = NOTHING
    share: Array | None = None
    evidence: Array | None = None

    @property
    def sampled(self) -> tuple[str, ...]:
        """Latent sites whose KL is a Monte Carlo estimate."""
        return tuple(site for site in self.log_posterior if site not in self.kl)

    def kl_of(self, site: str) -> Array:
        """KL(q‖p) of one site per datum, (B,) or (S, B): analytic where registered, else log q − log p."""
        if site in self.kl:
            return self.kl[site].sum(-1)
        return self.log_posterior[site] - self.log_prior[site]

    def total_kl(self) -> Array:
        return sum((self.kl_of(site) for site in self.log_posterior), 0.0)

    def reconstruction(self) -> Array:
        """Σ log p(x | z) over observed sites, (S, B)."""
        return sum(self.log_likelihood.values(), 0.0)

    def elbo(self) -> Array:
        """The unweighted ELBO, (S, B)."""
        return self.reconstruction() - self.total_kl()

    def log_weight(self, weight: Any = 1.0, posterior: Mapping[str, Array] | None = None) -> Array:
        """log p(x | z) + weight · (log p(z) − log q(z | x)), (S, B). posterior: `path` or `score` in place of log q."""
        log_q = self.log_posterior if posterior is None else posterior
        ratio = sum((self.log_prior[site] - log_q[site] for site in self.log_posterior), 0.0)
        return self.reconstruction() + weight * ratio

    def mean(self, value: Array) -> Array:
        """(B,): the mean over particles of (S, B), of (B,) itself."""
        if value.ndim == 1:
            return value
        return value.mean(0) if self.share is None else (self.share * value).sum(0)

    def converted(self, to_numpy: Callable[[Any], Any], needs: Set[str]) -> Terms:
        """The same in NumPy, without the tables that are neither always there nor in `needs`; the densities (S, B)."""
        densities = {
            field: {site: to_numpy(value).reshape(-1, len(self.weight)) for site, value in getattr(self, field).items()}
            for field in ("log_likelihood", "log_prior", "log_posterior")
        }
        others = {
            field: {site: to_numpy(value) for site, value in getattr(self, field).items()}
            for field in ("kl", *needs & set(TABLES))
        }
        share = None if self.share is None else to_numpy(self.share)
        return Terms(**densities, **others, weight=to_numpy(self.weight), share=share)

    def sums(self, loss: Array) -> dict[str, Array]:
        """What a person wants to see of one batch: sums over its real rows, means over particles."""

        def total(value: Array) -> Array:
            return (self.mean(value) * self.weight).sum()

        found = {"objective": loss.sum(), "rows": self.weight.sum()}
        found |= {f"log_likelihood/{site}": total(value) for site, value in self.log_likelihood.items()}
        return found | {f"kl/{site}": total(self.kl_of(site)) for site in self.log_posterior}


TABLES = tuple(name for name in Terms._fields if name not in ("weight", "share", "evidence"))
"""The fields of `Terms` that are tables by site."""
