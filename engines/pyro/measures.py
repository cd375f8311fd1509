"""What a decoder attends to on Pyro: its priors p(F | n), the law of n, and its posteriors q(F | x)."""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.nn import functional as F

from ...guides import measures as posteriors
from ...models import measures
from ...models.measures import NEVER
from .dirichlet_process import BoundedDirichletPrior, BoundedDirichletProcess
from .module import Realised
from .priors import _Placed
from .vector_set import VectorSet


class DirichletProcessPrior(_Placed):
    """p(F | n): prior(n (B,), T) is a BoundedDirichletPrior over T + 1 components, the first the prior's own."""

    def forward(self, lengths: Tensor, steps: int) -> BoundedDirichletPrior:
        spec, zero = self.spec, self.zero
        total = (spec.pseudo_count + spec.increment * lengths.to(zero.dtype)).log()
        loc, scale = zero + spec.loc, zero + spec.scale
        if spec.empirical:
            loc, scale = self.get_parameter("loc"), (0.5 * self.get_parameter("log_variance")).exp()
            total = total + self.get_parameter("log_pseudo_count")
        mask = torch.arange(steps + 1, device=zero.device) <= lengths.unsqueeze(-1)
        return BoundedDirichletPrior(total, loc, scale, mask, places=spec.places, validate_args=False)

    @property
    def log_alpha(self) -> Tensor:
        """log α^p (1,), of the prior's own component."""
        own = self.zero[:1] + math.log(self.spec.pseudo_count)
        return own + self.get_parameter("log_pseudo_count") if self.spec.empirical else own


class NormalVectorsPrior(_Placed):
    """p(F | n): prior(n (B,), T) is a VectorSet of N(0, I) at the words that have a vector."""

    def forward(self, lengths: Tensor, steps: int) -> VectorSet:
        return _standard(self.zero, self.taken(lengths, steps))

    def taken(self, lengths: Tensor, steps: int) -> Tensor:
        """(B, K), the places that take part."""
        return torch.tensor(self.spec.kept(steps), device=lengths.device) < lengths.unsqueeze(-1)


class PooledNormalPrior(_Placed):
    """p(F): prior(n (B,), T) is a VectorSet of one N(0, I)."""

    def forward(self, lengths: Tensor, steps: int) -> VectorSet:
        return _standard(self.zero, self.taken(lengths, steps))

    def taken(self, lengths: Tensor, steps: int) -> Tensor:
        """(B, 1), true."""
        return torch.ones_like(lengths, dtype=torch.bool).unsqueeze(-1)


class LengthLaw(Realised):
    """p(n): length() is a Categorical."""

    log_shares: Tensor

    def forward(self) -> dist.TorchDistribution:
        return dist.Categorical(logits=self.log_shares, validate_args=False)


class _Normals(Realised):
    """Normals from vectors h (…, H)."""

    reads = ("prior",)

    def normals(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Means and standard deviations (…, p)."""
        weight, bias = (0.5 * self.get_parameter(f"log_variance{part}") for part in ("", "_bias"))
        return self.means(h), F.linear(h, weight, bias).exp()

    def means(self, h: Tensor) -> Tensor:
        return F.linear(h, self.get_parameter("loc"), self.get_parameter("loc_bias"))


class DirichletProcessPosterior(_Normals):
    """q(F | x): posterior(h (B, T, H), n (B,)) is a BoundedDirichletProcess over T + 1 components, as the prior's.

    h may have particles, (S, B, T, H). below: (…, T), what log α of the words adds up on.
    """

    def forward(
        self, h: Tensor, lengths: Tensor, below: Tensor | None = None, *, prior: Any
    ) -> BoundedDirichletProcess:
        spec, p = self.spec, prior(lengths, h.shape[-2])
        loc, scale = self.normals(h)
        own = prior.log_alpha.expand(*loc.shape[:-2], 1)
        return BoundedDirichletProcess(
            self._log_alpha(h, loc, own, p.mask_of_components, below),
            _led(p.loc, loc),
            _led(p.scale, scale),
            p.mask_of_components,
            places=p.places,
            scheme="mixture" if spec.objective == "mixture" else "stratified",
            gradient=spec.gradient,
            penalties=(spec.lambda_weights, spec.lambda_locations) if spec.objective == "paper" else None,
            validate_args=False,
        )

    def _log_alpha(self, h: Tensor, loc: Tensor, own: Tensor, mask: Tensor, below: Tensor | None) -> Tensor:
        """(…, T + 1)."""
        of_means = self.spec.pseudo_counts == "quadratic_in_means"
        x = loc if of_means else h
        found = x @ self.get_parameter("alpha") + self.get_parameter("alpha_bias")
        if self.spec.pseudo_counts != "exponential":
            found = found + x.square() @ self.get_parameter("alpha_square")
        found = found if below is None else found + below
        if not of_means:
            return torch.cat((own, found.clamp(*posteriors.LOG_ALPHA)), -1)
        both = torch.cat((own, found), -1)
        total = both.where(mask, NEVER).logsumexp(-1, keepdim=True)
        return both - (total - posteriors.LOG_ALPHA[1]).clamp(min=0)


class NormalVectors(_Normals):
    """q(F | x): posterior(h (B, T, H), n (B,)) is a VectorSet at the words that have a vector."""

    def forward(self, h: Tensor, lengths: Tensor, *, prior: Any) -> VectorSet:
        return VectorSet(*self.normals(h[..., prior.spec.kept(h.shape[-2]), :]), prior.taken(lengths, h.shape[-2]))


class PointVectors(_Normals):
    """q(F | x): posterior(h (B, T, H), n (B,)) is a VectorSet of points at the words that have a vector."""

    def forward(self, h: Tensor, lengths: Tensor, *, prior: Any) -> VectorSet:
        return VectorSet(self.means(h[..., prior.spec.kept(h.shape[-2]), :]), None, prior.taken(lengths, h.shape[-2]))


class PooledNormal(_Normals):
    """q(F | x): posterior(h (B, T, H), n (B,)) is a VectorSet of one vector."""

    def forward(self, h: Tensor, lengths: Tensor, *, prior: Any) -> VectorSet:
        real = (torch.arange(h.shape[-2], device=h.device) < lengths.clamp(min=1).unsqueeze(-1)).unsqueeze(-1)
        if self.spec.pooling == "max":
            pooled = h.where(real, -math.inf).amax(-2, keepdim=True)
        else:
            pooled = h.where(real, 0.0).sum(-2, keepdim=True) / real.sum(-2, keepdim=True)
        return VectorSet(*self.normals(pooled), prior.taken(lengths, h.shape[-2]))


def _led(first: Tensor, rest: Tensor) -> Tensor:
    """(…, T + 1, p) of the prior's (B, p) before the words' (…, T, p)."""
    return torch.cat((first.unsqueeze(-2).expand(*rest.shape[:-2], 1, -1), rest), -2)


def _standard(zero: Tensor, mask: Tensor) -> VectorSet:
    loc = zero.expand(*mask.shape, -1)
    return VectorSet(loc, torch.ones_like(loc), mask, validate_args=False)


MEASURES: dict[type, type[Realised]] = {
    measures.DirichletProcessPrior: DirichletProcessPrior,
    measures.NormalVectorsPrior: NormalVectorsPrior,
    measures.PooledNormalPrior: PooledNormalPrior,
    measures.LengthLaw: LengthLaw,
    posteriors.DirichletProcessPosterior: DirichletProcessPosterior,
    posteriors.NormalVectors: NormalVectors,
    posteriors.PointVectors: PointVectors,
    posteriors.PooledNormal: PooledNormal,
}
