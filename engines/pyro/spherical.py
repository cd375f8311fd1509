"""Distributions on the unit sphere S^{m−1} ⊂ R^m: von Mises-Fisher, power spherical and uniform.

All have batch shape (…) and event shape (m,). The two that have a mean direction μ and a concentration κ are
reparameterised in both, in μ through a reflection and in κ by implicit gradients (`spherical_draw`); what they need of
κ alone is in `spherical_moments`. Nothing leaves the device.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor
from torch.distributions import register_kl
from torch.distributions.utils import lazy_property

from ...models.errors import BadInput
from .spherical_draw import POWER_SPHERICAL, VON_MISES_FISHER, Family, draw
from .spherical_moments import Moments, power_spherical, von_mises_fisher


def log_area(m: int) -> float:
    """log |S^{m−1}|, the area of the unit sphere in R^m, in nats."""
    return math.log(2) + m / 2 * math.log(math.pi) - math.lgamma(m / 2)


class HypersphericalUniform(TorchDistribution):
    """The uniform distribution on the unit sphere in R^m.

    dim: m ≥ 2. dtype, device: of the draws; PyTorch's defaults if not given.
    """

    # torch declares both as properties and its own distributions set them so
    arg_constraints = {}  # noqa: RUF012  # pyright: ignore[reportAssignmentType]
    support = constraints.sphere  # pyright: ignore[reportAssignmentType]
    has_rsample = True

    def __init__(
        self,
        dim: int,
        batch_shape: Any = (),
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        validate_args: bool | None = None,
    ) -> None:
        _check_dim(dim)
        self.dim = dim
        self._like = torch.empty(0, dtype=dtype, device=device)
        super().__init__(torch.Size(batch_shape), torch.Size((dim,)), validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> HypersphericalUniform:
        """The same distribution with the batch shape given."""
        like = self._like
        new = HypersphericalUniform(self.dim, batch_shape, dtype=like.dtype, device=like.device, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008 - as torch declares it
        """sample_shape + batch shape + (m,)."""
        normal = self._like.new_empty(self._extended_shape(sample_shape)).normal_()
        return normal / normal.norm(dim=-1, keepdim=True)

    def log_prob(self, value: Tensor) -> Tensor:
        """(…, m) to (…), in nats against the surface area."""
        if self._validate_args:
            self._validate_sample(value)
        shape = torch.broadcast_shapes(value.shape[:-1], self.batch_shape)
        return value.new_full(shape, -log_area(self.dim))

    def entropy(self) -> Tensor:
        """The batch shape, in nats."""
        return self._like.new_full(self.batch_shape, log_area(self.dim))

    @property
    def mean(self) -> Tensor:
        """0, batch shape + (m,)."""
        return self._like.new_zeros(self.batch_shape + self.event_shape)


class _Concentrated(TorchDistribution):
    """p(z) = exp(L(κ) + κ T(μᵀz)) / |S^{m−1}|, see `spherical_moments`."""

    arg_constraints = {  # noqa: RUF012  # pyright: ignore[reportAssignmentType]
        "loc": constraints.sphere,
        "concentration": constraints.positive,
    }
    support = constraints.sphere  # pyright: ignore[reportAssignmentType]
    has_rsample = True
    _family: Family

    def __init__(self, loc: Tensor, concentration: Tensor | float, *, validate_args: bool | None = None) -> None:
        concentration = torch.as_tensor(concentration, dtype=loc.dtype, device=loc.device)
        _check_dim(loc.shape[-1] if loc.dim() else 0)
        batch = _broadcast(loc.shape[:-1], concentration.shape)
        self.loc = loc.expand(batch + loc.shape[-1:])
        self.concentration = concentration.expand(batch)
        super().__init__(batch, loc.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> _Concentrated:
        """The same distribution for each new index."""
        batch = torch.Size(batch_shape)
        new = type(self)(
            self.loc.expand(batch + self.event_shape), self.concentration.expand(batch), validate_args=False
        )
        new._validate_args = self._validate_args
        return new

    @lazy_property
    def moments(self) -> Moments:
        """What depends on κ alone, of the batch shape."""
        return self._moments()

    def log_prob(self, value: Tensor) -> Tensor:
        """(…, m) to (…), in nats against the surface area. From |z − μ|², which holds its digits where κ is large."""
        if self._validate_args:
            self._validate_sample(value)
        square = (value - self.loc).square().sum(-1)
        return self.moments.log_peak + self.concentration * self._statistic(square) - log_area(self.event_shape[0])

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008 - as torch declares it
        """sample_shape + batch shape + (m,), of unit norm."""
        shape = self._extended_shape(sample_shape)
        return draw(self._family, self.loc, self.concentration, self.moments.slope, shape)

    def entropy(self) -> Tensor:
        """The batch shape, in nats."""
        return log_area(self.event_shape[0]) - self.moments.kl

    @property
    def mean(self) -> Tensor:
        """E[z] = E[μᵀz] μ, batch shape + (m,)."""
        return self.moments.mean_resultant.unsqueeze(-1) * self.loc

    @property
    def variance(self) -> Tensor:
        """Of each coordinate, batch shape + (m,), from E[(μᵀz)²]."""
        along = self._second_moment()
        across = (1 - along) / (self.event_shape[0] - 1)
        square = self.loc.square()
        return square * along.unsqueeze(-1) + (1 - square) * across.unsqueeze(-1) - self.mean.square()

    def _moments(self) -> Moments:
        raise NotImplementedError

    def _statistic(self, square: Tensor) -> Tensor:
        raise NotImplementedError

    def _second_moment(self) -> Tensor:
        raise NotImplementedError


class VonMisesFisher(_Concentrated):
    """The von Mises-Fisher distribution, log p(z) = κ μᵀz + log C_m(κ) (Davidson et al. 2018).

    loc: μ (…, m), m ≥ 2, of unit norm. concentration: κ (…), positive, broadcastable with μ's batch. float32 or float64.
    """

    _family = VON_MISES_FISHER

    def _moments(self) -> Moments:
        return von_mises_fisher(self.event_shape[0], self.concentration)

    def _statistic(self, square: Tensor) -> Tensor:
        return -0.5 * square

    def _second_moment(self) -> Tensor:
        return 1 - (self.event_shape[0] - 1) * self.moments.mean_resultant / self.concentration


class PowerSpherical(_Concentrated):
    """The power spherical distribution, p(z) ∝ (1 + μᵀz)^κ: no rejection (De Cao & Aziz 2020).

    loc: μ (…, m), m ≥ 2, of unit norm. concentration: κ (…), positive, broadcastable with μ's batch. float32 or float64.
    """

    _family = POWER_SPHERICAL

    def _moments(self) -> Moments:
        return power_spherical(self.event_shape[0], self.concentration)

    def _statistic(self, square: Tensor) -> Tensor:
        return (-0.25 * square).log1p()

    def _second_moment(self) -> Tensor:
        """(1 + μᵀz) / 2 is Beta(α, β), β = (m − 1) / 2 and α = β + κ."""
        whole = self.concentration + (self.event_shape[0] - 1)
        mean = self.moments.mean_resultant
        return mean.square() + (1 - mean.square()) / (whole + 1)


@register_kl(VonMisesFisher, HypersphericalUniform)
@register_kl(PowerSpherical, HypersphericalUniform)
def _kl_to_uniform(q: _Concentrated, p: HypersphericalUniform) -> Tensor:
    _check_same(q, p)
    return q.moments.kl.expand(_broadcast(q.batch_shape, p.batch_shape))


@register_kl(VonMisesFisher, VonMisesFisher)
def _kl_to_von_mises_fisher(q: VonMisesFisher, p: VonMisesFisher) -> Tensor:
    """KL(q‖U) − L(κ_p) + κ_p (1 − A_q μ_qᵀμ_p)."""
    _check_same(q, p)
    apart = 0.5 * (q.loc - p.loc).square().sum(-1)
    deficit = q.moments.kl - q.moments.log_peak  # −κ_q (1 − A_q)
    fall = q.moments.mean_resultant * apart - deficit / q.concentration
    return q.moments.kl - p.moments.log_peak + p.concentration * fall


def _broadcast(one: torch.Size, other: torch.Size) -> torch.Size:
    return one if one == other or not other else torch.broadcast_shapes(one, other)


def _check_dim(m: int) -> None:
    if m < 2:
        raise BadInput(f"a sphere is in at least 2 dimensions, not {m}")


def _check_same(q: TorchDistribution, p: TorchDistribution) -> None:
    if q.event_shape != p.event_shape:
        raise BadInput(f"spheres in {q.event_shape[0]} and {p.event_shape[0]} dimensions have no KL")
