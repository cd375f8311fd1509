"""Sets of vectors, independent normals: what attention of the plain kind reads, as random measures are laid out.

A draw is packed as (K, p + 1): 0 before each vector z_k, and `MASKED` and zeros at places that take no part.
"""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions import Normal, TorchDistribution, constraints
from torch import Tensor
from torch.distributions import register_kl

from ...models.errors import BadInput
from .dirichlet import MASKED
from .normal_kl import normal_kl


class VectorSet(TorchDistribution):
    """z_k ~ N(μ_k, diag σ_k²) at each place that takes part.

    loc: (…, K, p). scale: (…, K, p), or None for the points μ_k themselves. mask: (…, K), false for places that take no
    part, whatever their parameters.
    """

    arg_constraints = {}  # noqa: RUF012  # pyright: ignore[reportAssignmentType]
    support = constraints.independent(constraints.real, 2)  # pyright: ignore[reportAssignmentType]
    has_rsample = True

    def __init__(self, loc: Tensor, scale: Tensor | None, mask: Tensor, *, validate_args: bool | None = None) -> None:
        shape = torch.broadcast_shapes(loc.shape[:-1], mask.shape)
        self.mask_of_places, each = mask.bool().expand(shape), mask.bool().unsqueeze(-1)
        self.loc = loc.where(each, 0).expand(*shape, -1)
        self.scale = None if scale is None else scale.where(each, 1).expand(*shape, -1)
        super().__init__(shape[:-1], torch.Size((shape[-1], loc.shape[-1] + 1)), validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> VectorSet:
        """The same distribution for each new index."""
        batch = torch.Size(batch_shape)

        def wider(x: Tensor) -> Tensor:
            return x.expand(batch + x.shape[len(self.batch_shape) :])

        scale = None if self.scale is None else wider(self.scale)
        return VectorSet(wider(self.loc), scale, wider(self.mask_of_places), validate_args=False)

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008 - as torch declares it
        """sample_shape + batch shape + (K, p + 1)."""
        shape = self._extended_shape(sample_shape)
        loc = self.loc.expand(*shape[:-1], -1)
        z = loc if self.scale is None else loc + self.scale * torch.randn_like(loc)
        return self._packed(z.where(self.mask_of_places.unsqueeze(-1), 0))

    def log_prob(self, value: Tensor) -> Tensor:
        """(…, K, p + 1) to (…), in nats, against Lebesgue measure on the vectors; 0 of points."""
        if self.scale is None:
            return value.new_zeros(torch.broadcast_shapes(value.shape[:-2], self.batch_shape))
        each = Normal(self.loc, self.scale, validate_args=False).log_prob(value[..., 1:]).sum(-1)
        return each.where(self.mask_of_places, 0).sum(-1)

    @property
    def mean_measure(self) -> Tensor:
        """The set at its means, packed as a draw."""
        return self._packed(self.loc)

    def _packed(self, z: Tensor) -> Tensor:
        first = torch.where(self.mask_of_places, 0.0, MASKED).to(z).expand(z.shape[:-1])
        return torch.cat((first.unsqueeze(-1), z), -1)


@register_kl(VectorSet, VectorSet)
def _kl(q: VectorSet, p: VectorSet) -> Tensor:
    """KL(q‖p); of points −log p at them."""
    if q.event_shape != p.event_shape or p.scale is None:
        raise BadInput(f"sets of vectors of shapes {tuple(q.event_shape)} and {tuple(p.event_shape)} have no KL")
    if q.scale is None:
        return -p.log_prob(q.mean_measure)
    return normal_kl(q.loc, q.scale, p.loc, p.scale, q.mask_of_places).sum(-1)
