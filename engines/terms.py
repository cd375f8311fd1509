"""What an objective is made of: the two traces, per datum and per site.

Letters: S particles, B rows of the batch, D event dimensions of a latent.
"""

from __future__ import annotations

from typing import Any, NamedTuple

Array = Any


class Terms(NamedTuple):
    """The two traces of a pair, per datum and site, unscaled, in nats. A pytree; torch, JAX or NumPy arrays.

    Attributes:
        log_likelihood: observed site → (S, B).
        log_prior: latent site → log p(z), (S, B).
        log_posterior: latent site → log q(z), (S, B).
        kl: latent site with a registered analytic KL → KL(q‖p), (B, D) or (S, B, D): elementwise where the family
            factorises, else D = 1.
        weight: (B,), 0 marks a filler row.
    """

    log_likelihood: dict[str, Array]
    log_prior: dict[str, Array]
    log_posterior: dict[str, Array]
    kl: dict[str, Array]
    weight: Array

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

    def log_weight(self) -> Array:
        """log p(x, z) − log q(z | x), (S, B)."""
        ratio = sum((self.log_prior[site] - self.log_posterior[site] for site in self.log_posterior), 0.0)
        return self.reconstruction() + ratio

    def sums(self, loss: Array) -> dict[str, Array]:
        """What a person wants to see of one batch: sums over its real rows, means over particles."""

        def total(value: Array) -> Array:
            return ((value.mean(0) if value.ndim > 1 else value) * self.weight).sum()

        found = {"objective": loss.sum(), "rows": self.weight.sum()}
        found |= {f"log_likelihood/{site}": total(value) for site, value in self.log_likelihood.items()}
        return found | {f"kl/{site}": total(self.kl_of(site)) for site in self.log_posterior}
