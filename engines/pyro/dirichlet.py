"""The Dirichlet distribution of log π, exact for concentrations from 1e-8 to 1e8, with slots that take no part."""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor
from torch.distributions import register_kl
from torch.distributions.utils import lazy_property

from ...models.errors import BadInput
from ...models.measures import NEVER
from .dirichlet_kl import beyond_poisson, log_gamma_excess, poisson_kl

MASKED = NEVER
"""log π of a slot that takes no part."""


class _LogSimplex(constraints.Constraint):
    """Logarithms of weights that sum to one."""

    event_dim = 1
    reltol = 100.0
    """Relative to the resolution of the dtype."""

    def check(self, value: Tensor) -> Tensor:
        return value.logsumexp(-1).abs() <= self.reltol * torch.finfo(value.dtype).eps


log_simplex = _LogSimplex()


class LogDirichlet(TorchDistribution):
    """log π (K,) of π ~ Dirichlet(α).

    log_concentration: log α (…, K). mask: (…, K), true where a slot takes part, at least once a row; the other slots are
    `MASKED`, whatever their parameters, and get no gradient. float32 or float64.

    A draw is log g − log Σ g of Gammas g ~ Gamma(α) made in the log: log g = log Gamma(α + 1) + α⁻¹ log U, which has a
    pathwise gradient in log α, also where g itself is below the smallest number. Unbiased for expectations of π too, but
    where α is tiny those are carried by the rare draws, a share of about α, in which two slots compare.
    """

    arg_constraints = {"log_concentration": constraints.real_vector}  # noqa: RUF012  # pyright: ignore[reportAssignmentType]
    support = log_simplex  # pyright: ignore[reportAssignmentType]
    has_rsample = True

    def __init__(
        self, log_concentration: Tensor, mask: Tensor | None = None, *, validate_args: bool | None = None
    ) -> None:
        if not log_concentration.dim():
            raise BadInput("the log concentrations of a LogDirichlet have a last dimension of slots, not shape ()")
        mask = torch.ones_like(log_concentration, dtype=torch.bool) if mask is None else mask.bool()
        self.mask_of_slots, log_concentration = torch.broadcast_tensors(mask, log_concentration)
        self.log_concentration = log_concentration.where(self.mask_of_slots, 0)
        batch, event = log_concentration.shape[:-1], log_concentration.shape[-1:]
        super().__init__(batch, event, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> LogDirichlet:
        """The same distribution for each new index."""
        shape = torch.Size(batch_shape) + self.event_shape
        new = LogDirichlet(self.log_concentration.expand(shape), self.mask_of_slots.expand(shape), validate_args=False)
        new._validate_args = self._validate_args
        return new

    @lazy_property
    def log_total(self) -> Tensor:
        """log Σ α, of the batch shape."""
        return self.log_concentration.where(self.mask_of_slots, MASKED).logsumexp(-1)

    @property
    def log_share(self) -> Tensor:
        """log (α / Σα) (…, K), and `MASKED` for slots that take no part."""
        return (self.log_concentration - self.log_total.unsqueeze(-1)).where(self.mask_of_slots, MASKED)

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008 - as torch declares it
        """sample_shape + batch shape + (K,)."""
        log = self.log_concentration.expand(self._extended_shape(sample_shape))
        waiting = torch.empty_like(log).exponential_()  # −log U
        log_gamma = torch._standard_gamma(log.exp() + 1).log() - waiting * (-log).exp()
        log_gamma = log_gamma.where(self.mask_of_slots, MASKED)
        return (log_gamma - log_gamma.logsumexp(-1, keepdim=True)).where(self.mask_of_slots, MASKED)

    def log_prob(self, value: Tensor) -> Tensor:
        """(…, K) to (…), in nats: the density of π, not of log π, against Lebesgue measure on all but one of its slots.

        Σ (α − 1) log π + log Γ(Σα) − Σ log Γ(α) with Σ α (log π − log (α / Σα)) as a divergence, which holds its digits
        where α is large, and uses that π sums to one: so do its gradients.
        """
        if self._validate_args:
            self._validate_sample(value)
        apart = self.log_total.exp() * self._sum(poisson_kl(value.where(self.mask_of_slots, MASKED), self.log_share))
        excess = log_gamma_excess(self.log_concentration)[0]
        return log_gamma_excess(self.log_total)[0] - apart - self._sum(excess + value)

    @property
    def mean(self) -> Tensor:
        """E[log π] = ψ(α) − ψ(Σα), batch shape + (K,)."""
        found = self.log_concentration.exp().digamma() - self.log_total.exp().digamma().unsqueeze(-1)
        return found.where(self.mask_of_slots, MASKED)

    @property
    def variance(self) -> Tensor:
        """Var[log π] = ψ'(α) − ψ'(Σα), batch shape + (K,)."""
        each, total = (torch.polygamma(1, log.exp()) for log in (self.log_concentration, self.log_total))
        return (each - total.unsqueeze(-1)).where(self.mask_of_slots, 0)

    def _sum(self, terms: Tensor) -> Tensor:
        return terms.where(self.mask_of_slots, 0).sum(-1)


@register_kl(LogDirichlet, LogDirichlet)
def _kl(q: LogDirichlet, p: LogDirichlet) -> Tensor:
    """KL(q‖p), `dirichlet_kl`; both with the same mask."""
    if q.event_shape != p.event_shape:
        raise BadInput(f"Dirichlets of {q.event_shape[0]} and {p.event_shape[0]} slots have no KL")
    totals = q.log_total, p.log_total
    apart = p.log_total.exp() * q._sum(poisson_kl(q.log_share, p.log_share))
    return apart + q._sum(beyond_poisson(q.log_concentration, p.log_concentration)) - beyond_poisson(*totals)
