"""Random measures Σ_k π_k δ(z_k) of finitely many atoms: the prior and posterior of the nonparametric bottleneck.

The nonparametric variational information bottleneck of Henderson & Fehr (2023), section 3. A draw is packed as (K, p + 1), log π_k
before z_k. There are M components, of which `mask` says which are real, and K = κM atoms: atom jM + i is component i's
j-th place, and takes part where i does. Places that take no part hold `MASKED` and zeros.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, get_args

import torch
from pyro.distributions import Normal, TorchDistribution, constraints
from torch import Tensor
from torch.distributions import register_kl
from torch.distributions.utils import lazy_property

from ...models.errors import BadInput
from .dirichlet import MASKED, LogDirichlet, log_simplex
from .dirichlet_kl import dirichlet_kl
from .mixture_draw import components_drawn, log_density, reparameterised
from .normal_kl import normal_kl

Scheme = Literal["stratified", "mixture"]
Gradient = Literal["implicit", "weights", "score"]
_OTHERS = 1e-3
"""What other atoms weigh at least, where one moves at their expense: else a single atom of all the weight divides by 0."""


class _Atoms(constraints.Constraint):
    """Log weights that sum to one, each before a finite location."""

    event_dim = 2

    def check(self, value: Tensor) -> Tensor:
        return log_simplex.check(value[..., 0]) & value[..., 1:].isfinite().all(-1).all(-1)


class _RandomMeasure(TorchDistribution):
    """Weights and, given nothing else, locations; `mask` (…, M) and κ, `places`, are common to both sides."""

    arg_constraints = {}  # noqa: RUF012  # pyright: ignore[reportAssignmentType]
    support = _Atoms()  # pyright: ignore[reportAssignmentType]
    has_rsample = True
    mask_of_components: Tensor
    places: int
    gradient: Gradient = "implicit"
    drawn: tuple[Tensor, Tensor] | None = None

    @property
    def weights(self) -> LogDirichlet:
        """The law of log π."""
        raise NotImplementedError

    @lazy_property
    def log_atoms(self) -> Tensor:
        """log K₀, of the atoms that take part, of the batch shape."""
        return (self.places * self.mask_of_components.sum(-1)).to(self._dtype).log()

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008 - as torch declares it
        """sample_shape + batch shape + (K, p + 1)."""
        weights = self.weights.rsample(sample_shape)
        locations, chosen = self._draw_locations(self._extended_shape(sample_shape)[:-1])
        taken = self._tiled(self.mask_of_components)
        self.drawn = None
        if chosen is not None and self.gradient == "weights":
            # log π_k moves as much as the log share, 0 here: the norm takes the part π_k of that back
            heavier = (chosen - chosen.detach()) / (-weights.detach().expm1()).clamp(min=_OTHERS)
            weights = torch.where(taken, (weights + heavier).log_softmax(-1), weights)
        value = torch.cat((weights.unsqueeze(-1), locations.masked_fill_(~taken.unsqueeze(-1), 0)), -1)
        if chosen is not None and self.gradient == "score":
            self.drawn = value, chosen.where(taken, 0).sum(-1)
        return value

    def log_choice(self, value: Tensor) -> Tensor | None:
        """Of its last draw, where that has no gradient in the choice of components: log of their shares, Σ over atoms."""
        return self.drawn[1] if self.drawn is not None and self.drawn[0] is value else None

    def log_prob(self, value: Tensor) -> Tensor:
        """(…, K, p + 1) to (…), in nats, against Lebesgue measure on π (as `LogDirichlet`) and on the locations."""
        if self._validate_args:
            self._validate_sample(value)
        weights = self.weights
        located = self._locate(value[..., 1:]).where(weights.mask_of_slots, 0)
        return weights.log_prob(value[..., 0]) + located.sum(-1)

    def _tiled(self, x: Tensor, dim: int = -1) -> Tensor:
        return x if self.places == 1 else torch.cat([x] * self.places, dim)

    @property
    def _dtype(self) -> torch.dtype:
        raise NotImplementedError

    def _draw_locations(self, shape: torch.Size) -> tuple[Tensor, Tensor | None]:
        """(…, K) to (…, K, p), and log shares (…, K) of the components chosen, where the locations do not move with them."""
        raise NotImplementedError

    def _locate(self, z: Tensor) -> Tensor:
        """log-density of each location, (…, K, p) to (…, K)."""
        raise NotImplementedError


class BoundedDirichletProcess(_RandomMeasure):
    """The posterior: M components of pseudo-count α_i and law N_i = N(μ_i, diag σ_i²), the prior's component among them.

    log_alpha: (…, M). loc, scale: (…, M, p). mask: (…, M), true for real components, at least one a row; whatever the
    others' parameters are changes nothing. places: κ.
    scheme: "stratified", π ~ Dir(α_i / κ, each κ times) and z_ij ~ N_i, what the paper samples. "mixture", with A = Σα
        and K₀ = κ × real components, π ~ Dir(A / K₀, …) and z_k ~ Σ_i (α_i / A) N_i, independent.
    gradient: in α of a mixture's draws. "implicit" is unbiased, with a variance that grows exponentially as components
        come apart. "weights": π_k moves as its component's share does, d log π_k = d log share, and the others make room
        for it. Unbiased for what is linear in the measure, else with a bias of order E Σ_k π_k² = (A / K₀ + 1) / (A + 1),
        at any distance; it does not see what an atom that was not drawn would tell. "score": none in the draw, but in
        its `log_choice`, for an estimate by the score function.
    penalties: λ_D and λ_G, which make the KL λ_D L_D + λ_G L_G, the paper's regulariser and no bound; None: a KL.
    """

    def __init__(
        self,
        log_alpha: Tensor,
        loc: Tensor,
        scale: Tensor,
        mask: Tensor | None = None,
        *,
        places: int = 1,
        scheme: Scheme = "stratified",
        gradient: Gradient = "implicit",
        penalties: tuple[float, float] | None = None,
        validate_args: bool | None = None,
    ) -> None:
        _check(places, loc.shape, scale.shape)
        for what, choice, choices in (("scheme", scheme, Scheme), ("gradient", gradient, Gradient)):
            if choice not in get_args(choices):
                known = " or ".join(get_args(choices))
                raise BadInput(f"the {what} of a bounded Dirichlet process is {known}, not {choice!r}")
        self.gradient, self.penalties = gradient, penalties
        mask = torch.ones_like(log_alpha, dtype=torch.bool) if mask is None else mask.bool()
        shape = torch.broadcast_shapes(log_alpha.shape, mask.shape, loc.shape[:-1])
        self.places, self.scheme, self.mask_of_components = places, scheme, mask.expand(shape)
        self.log_alpha = log_alpha.where(mask, 0).expand(shape)
        self._given = tuple(x.expand(*shape, -1) for x in (loc, scale))
        event = torch.Size((places * shape[-1], loc.shape[-1] + 1))
        super().__init__(shape[:-1], event, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> BoundedDirichletProcess:
        """The same distribution for each new index."""
        batch = torch.Size(batch_shape)
        arrays = (self.log_alpha, *self._given, self.mask_of_components)
        arrays = (x.expand(batch + x.shape[len(self.batch_shape) :]) for x in arrays)
        new = BoundedDirichletProcess(
            *arrays,
            places=self.places,
            scheme=self.scheme,
            gradient=self.gradient,
            penalties=self.penalties,
            validate_args=False,
        )
        new._validate_args = self._validate_args
        return new

    @lazy_property
    def loc(self) -> Tensor:
        """μ (…, M, p), 0 for components that are not real."""
        return self._given[0].where(self.mask_of_components.unsqueeze(-1), 0)

    @lazy_property
    def scale(self) -> Tensor:
        """σ (…, M, p), 1 for components that are not real."""
        return self._given[1].where(self.mask_of_components.unsqueeze(-1), 1)

    @lazy_property
    def components(self) -> LogDirichlet:
        """Dir(α), whose total is A."""
        return LogDirichlet(self.log_alpha, self.mask_of_components, validate_args=False)

    @property
    def weights(self) -> LogDirichlet:
        if self.scheme == "stratified":
            each = self._tiled(self.log_alpha - self.log_alpha.new_tensor(self.places).log())
        else:
            each = (self.components.log_total - self.log_atoms).unsqueeze(-1)
        return LogDirichlet(each, self._tiled(self.mask_of_components), validate_args=False)

    @property
    def log_share(self) -> Tensor:
        """log (α_i / A), (…, M), and `MASKED` for components that are not real."""
        return self.components.log_share

    @property
    def mean_measure(self) -> Tensor:
        """log α_i, μ_i and σ_i² of the mean of the process, Σ_i (α_i / A) N_i: (…, M, 2 p + 1), `MASKED` and zeros where none."""
        mask = self.mask_of_components.unsqueeze(-1)
        parts = torch.cat((self.loc, self.scale.square()), -1).where(mask, 0)
        return torch.cat((self.log_alpha.unsqueeze(-1).where(mask, MASKED), parts), -1)

    @property
    def _dtype(self) -> torch.dtype:
        return self.log_alpha.dtype

    def _draw_locations(self, shape: torch.Size) -> tuple[Tensor, Tensor | None]:
        noise = self.loc.new_empty((*shape, self.loc.shape[-1])).normal_()
        if self.scheme == "stratified":
            loc, scale = (self._tiled(x, -2) for x in self._given)
            return torch.addcmul(loc, scale, noise), None
        if self.gradient == "implicit":
            return reparameterised(self.log_share, self.loc, self.scale, noise), None
        share, chosen = self.log_share, components_drawn(self.log_share.detach(), shape)
        share = share.expand(*shape[:-1], -1).gather(-1, chosen)
        loc, scale = (_rows(x, chosen) for x in self._given)
        return torch.addcmul(loc, scale, noise), share

    def _locate(self, z: Tensor) -> Tensor:
        if self.scheme == "stratified":
            return (
                Normal(self._tiled(self.loc, -2), self._tiled(self.scale, -2), validate_args=False).log_prob(z).sum(-1)
            )
        return log_density(self.log_share, self.loc, self.scale, z)


class BoundedDirichletPrior(_RandomMeasure):
    """The prior: π ~ Dir(B / K₀, …) over the K₀ atoms that take part, and z_k ~ N(μ, diag σ²), independent.

    log_total: log B (…), in the paper of B = α^p + α^Δ n for n vectors. loc, scale: (…, p). mask: (…, M), as the
    posterior's. places: κ.
    """

    def __init__(
        self,
        log_total: Tensor,
        loc: Tensor,
        scale: Tensor,
        mask: Tensor,
        *,
        places: int = 1,
        validate_args: bool | None = None,
    ) -> None:
        _check(places, loc.shape, scale.shape)
        batch = torch.broadcast_shapes(log_total.shape, mask.shape[:-1], loc.shape[:-1])
        self.places, self.mask_of_components = places, mask.bool().expand(*batch, -1)
        self.log_total, self.loc, self.scale = log_total.expand(batch), *(x.expand(*batch, -1) for x in (loc, scale))
        event = torch.Size((places * mask.shape[-1], loc.shape[-1] + 1))
        super().__init__(batch, event, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> BoundedDirichletPrior:
        """The same distribution for each new index."""
        batch = torch.Size(batch_shape)
        loc, scale, mask = (x.expand(*batch, -1) for x in (self.loc, self.scale, self.mask_of_components))
        new = BoundedDirichletPrior(
            self.log_total.expand(batch), loc, scale, mask, places=self.places, validate_args=False
        )
        new._validate_args = self._validate_args
        return new

    @property
    def weights(self) -> LogDirichlet:
        each = (self.log_total - self.log_atoms).unsqueeze(-1)
        return LogDirichlet(each, self._tiled(self.mask_of_components), validate_args=False)

    @property
    def _dtype(self) -> torch.dtype:
        return self.log_total.dtype

    def _draw_locations(self, shape: torch.Size) -> tuple[Tensor, Tensor | None]:
        noise = self.loc.new_empty((*shape, self.loc.shape[-1])).normal_()
        return self.loc.unsqueeze(-2) + self.scale.unsqueeze(-2) * noise, None

    def _locate(self, z: Tensor) -> Tensor:
        return Normal(self.loc.unsqueeze(-2), self.scale.unsqueeze(-2), validate_args=False).log_prob(z).sum(-1)


class Regularisers(NamedTuple):
    """Each of the batch shape, in nats. weights: L_D ≥ 0. locations: L_G ≥ 0."""

    weights: Tensor
    locations: Tensor


def regularisers(q: BoundedDirichletProcess, p: BoundedDirichletPrior) -> Regularisers:
    """The paper's two penalties, to be weighted by λ_D and λ_G, on a posterior of either scheme.

    L_D = KL(Dir(A / K₀, …)‖Dir(B / K₀, …)) and L_G = K₀ Σ_i (α_i / A) KL(N_i‖N). They depend on single α_i through their
    shares in L_G alone, and let components vanish. On a "stratified" posterior they are no bound of anything; on a
    "mixture" their sum is at least the KL.
    """
    _check_same(q, p)
    atoms = q.log_atoms.exp()
    weights = dirichlet_kl(q.components.log_total, p.log_total, atoms)
    return Regularisers(weights, atoms * (q.log_share.exp() * _location_kl(q, p)).sum(-1))


@register_kl(BoundedDirichletProcess, BoundedDirichletPrior)
def _kl(q: BoundedDirichletProcess, p: BoundedDirichletPrior) -> Tensor:
    """KL(q‖p), exact if "stratified"; of a "mixture" the upper bound L_D + L_G, `regularisers`; or q's penalties.

    That bounds the KL because the KL of a mixture of the N_i to N is at most the mixture of theirs, so that
    −E log p(x | F) + L_D + L_G stays an upper bound of −log p(x), and is exact where all N_i agree. The exact KL grows
    without limit as any α_i → 0.
    """
    if q.penalties or q.scheme == "mixture":
        found, (of_weights, of_locations) = regularisers(q, p), q.penalties or (1.0, 1.0)
        return of_weights * found.weights + of_locations * found.locations
    _check_same(q, p)
    return torch.distributions.kl_divergence(q.weights, p.weights) + q.places * _location_kl(q, p).sum(-1)


def _rows(x: Tensor, chosen: Tensor) -> Tensor:
    """x (…, M, p) at the components `chosen` (S…, …, K): (S…, …, K, p)."""
    batch, (components, width) = x.shape[:-2], x.shape[-2:]
    first = torch.arange(batch.numel(), device=x.device).view(*batch, 1) * components
    found = x.reshape(-1, width).index_select(0, (chosen + first).flatten())
    return found.view(*chosen.shape, width)


def _location_kl(q: BoundedDirichletProcess, p: BoundedDirichletPrior) -> Tensor:
    """KL(N_i‖N) (…, M), 0 for components that are not real."""
    loc, scale = q._given
    return normal_kl(loc, scale, p.loc.unsqueeze(-2), p.scale.unsqueeze(-2), q.mask_of_components)


def _check(places: int, loc: torch.Size, scale: torch.Size) -> None:
    if places < 1:
        raise BadInput(f"a bounded Dirichlet process has at least 1 atom for each component, not {places}")
    if loc != scale:
        raise BadInput(f"locations and scales have one shape, not {tuple(loc)} and {tuple(scale)}")


def _check_same(q: _RandomMeasure, p: _RandomMeasure) -> None:
    if q.event_shape != p.event_shape or q.places != p.places:
        raise BadInput(
            f"bounded Dirichlet processes of {q.places} × and {p.places} × atoms of shapes "
            f"{tuple(q.event_shape)} and {tuple(p.event_shape)} have no KL"
        )
