"""Random measures Σ_k π_k δ(z_k) of finitely many atoms: the prior and posterior of the nonparametric bottleneck.

The nonparametric variational information bottleneck of Henderson & Fehr (2023), section 3. A draw is packed as (K, p + 1), log π_k
before z_k. There are M components, of which `mask` says which are real, and K = κM atoms: atom jM + i is component i's
j-th place, and takes part where i does. Places that take no part hold `MASKED` and zeros.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array
from jax.lax import stop_gradient
from numpyro.distributions import constraints
from numpyro.distributions.kl import kl_divergence
from numpyro.distributions.util import validate_sample

from ...models.errors import BadInput
from .dirichlet import MASKED, LogDirichlet, log_simplex
from .dirichlet_kl import dirichlet_kl
from .mixture_draw import components_drawn, log_density, reparameterised
from .normal_kl import normal_kl

Scheme = Literal["stratified", "mixture"]
Gradient = Literal["implicit", "weights", "score"]
_OTHERS = 1e-3
"""What other atoms weigh at least, where one moves at their expense: else a single atom of all the weight divides by 0."""


class _Atoms(constraints._SingletonConstraint):
    """Log weights that sum to one, each before a finite location."""

    event_dim = 2

    def __call__(self, x: Any) -> Any:
        return log_simplex(x[..., 0]) & jnp.isfinite(x[..., 1:]).all((-1, -2))

    def feasible_like(self, prototype: Any) -> Any:
        return jnp.zeros_like(prototype).at[..., 0].set(log_simplex.feasible_like(prototype[..., 0]))


class _RandomMeasure(dist.Distribution):
    """Weights and, given nothing else, locations; `mask` (…, M) and κ, `places`, are common to both sides."""

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012 - as NumPyro declares it
    support: Any = _Atoms()
    has_rsample: Any = True
    mask_of_components: Array
    places: int
    gradient: Gradient = "implicit"
    drawn: tuple[Array, Array] | None = None

    @property
    def weights(self) -> LogDirichlet:
        """The law of log π."""
        raise NotImplementedError

    @property
    def log_atoms(self) -> Array:
        """log K₀, of the atoms that take part, of the batch shape."""
        return jnp.log((self.places * self.mask_of_components.sum(-1)).astype(self._dtype))

    def sample(self, key: Array | None, sample_shape: tuple[int, ...] = ()) -> Array:
        """sample_shape + batch shape + (K, p + 1)."""
        of_weights, of_locations = jax.random.split(jnp.asarray(key))
        weights = self.weights.sample(of_weights, sample_shape)
        locations, chosen = self._draw_locations(of_locations, weights.shape)
        taken = self._tiled(self.mask_of_components)
        self.drawn = None
        if chosen is not None and self.gradient == "weights":
            # log π_k moves as much as the log share, 0 here: the norm takes the part π_k of that back
            heavier = (chosen - stop_gradient(chosen)) / jnp.maximum(-jnp.expm1(stop_gradient(weights)), _OTHERS)
            weights = jnp.where(taken, jax.nn.log_softmax(weights + heavier, -1), weights)
        value = jnp.concatenate((weights[..., None], jnp.where(taken[..., None], locations, 0)), -1)
        if chosen is not None and self.gradient == "score":
            self.drawn = value, jnp.where(taken, chosen, 0).sum(-1)
        return value

    def log_choice(self, value: Array) -> Array | None:
        """Of its last draw, where that has no gradient in the choice of components: log of their shares, Σ over atoms."""
        return self.drawn[1] if self.drawn is not None and self.drawn[0] is value else None

    @validate_sample
    def log_prob(self, value: Array, intermediates: Any = None) -> Array:
        """(…, K, p + 1) to (…), in nats, against Lebesgue measure on π (as `LogDirichlet`) and on the locations."""
        weights = self.weights
        located = jnp.where(weights.mask_of_slots, self._locate(value[..., 1:]), 0)
        return weights.log_prob(value[..., 0]) + located.sum(-1)

    def _tiled(self, x: Array, dim: int = -1) -> Array:
        return x if self.places == 1 else jnp.concatenate([x] * self.places, dim)

    @property
    def _dtype(self) -> Any:
        raise NotImplementedError

    def _draw_locations(self, key: Array, shape: tuple[int, ...]) -> tuple[Array, Array | None]:
        """(…, K) to (…, K, p), and log shares (…, K) of the components chosen, where the locations do not move with them."""
        raise NotImplementedError

    def _locate(self, z: Array) -> Array:
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

    reparametrized_params: ClassVar[list[str]] = ["log_alpha", "loc", "scale"]
    pytree_data_fields = ("log_alpha", "loc", "scale", "mask_of_components")
    pytree_aux_fields = ("places", "scheme", "gradient", "penalties")

    def __init__(
        self,
        log_alpha: Array,
        loc: Array,
        scale: Array,
        mask: Array | None = None,
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
        mask = jnp.ones_like(log_alpha, bool) if mask is None else jnp.asarray(mask, bool)
        shape = jnp.broadcast_shapes(log_alpha.shape, mask.shape, loc.shape[:-1])
        self.places, self.scheme, self.mask_of_components = places, scheme, jnp.broadcast_to(mask, shape)
        each, whole = mask[..., None], (*shape, loc.shape[-1])
        self.log_alpha = jnp.broadcast_to(jnp.where(mask, log_alpha, 0), shape)
        self.loc, self.scale = (jnp.broadcast_to(jnp.where(each, x, safe), whole) for x, safe in ((loc, 0), (scale, 1)))
        event = (places * shape[-1], loc.shape[-1] + 1)
        super().__init__(shape[:-1], event, validate_args=validate_args)

    @property
    def components(self) -> LogDirichlet:
        """Dir(α), whose total is A."""
        return LogDirichlet(self.log_alpha, self.mask_of_components, validate_args=False)

    @property
    def weights(self) -> LogDirichlet:
        if self.scheme == "stratified":
            each = self._tiled(self.log_alpha - jnp.log(jnp.asarray(self.places, self._dtype)))
        else:
            each = (self.components.log_total - self.log_atoms)[..., None]
        return LogDirichlet(each, self._tiled(self.mask_of_components), validate_args=False)

    @property
    def log_share(self) -> Array:
        """log (α_i / A), (…, M), and `MASKED` for components that are not real."""
        return self.components.log_share

    @property
    def mean_measure(self) -> Array:
        """log α_i, μ_i and σ_i² of the mean of the process, Σ_i (α_i / A) N_i: (…, M, 2 p + 1), `MASKED` and zeros where none."""
        mask = self.mask_of_components[..., None]
        parts = jnp.where(mask, jnp.concatenate((self.loc, self.scale**2), -1), 0)
        return jnp.concatenate((jnp.where(mask, self.log_alpha[..., None], MASKED), parts), -1)

    @property
    def _dtype(self) -> Any:
        return self.log_alpha.dtype

    def _draw_locations(self, key: Array, shape: tuple[int, ...]) -> tuple[Array, Array | None]:
        noise_key, key = jax.random.split(key)
        noise = jax.random.normal(noise_key, (*shape, self.loc.shape[-1]), self.loc.dtype)
        if self.scheme == "stratified":
            return self._tiled(self.loc, -2) + self._tiled(self.scale, -2) * noise, None
        if self.gradient == "implicit":
            return reparameterised(key, self.log_share, self.loc, self.scale, noise), None
        chosen = components_drawn(key, stop_gradient(self.log_share), shape)
        share, loc, scale = (_rows(x, chosen) for x in (self.log_share[..., None], self.loc, self.scale))
        return loc + scale * noise, share[..., 0]

    def _locate(self, z: Array) -> Array:
        if self.scheme == "stratified":
            return dist.Normal(self._tiled(self.loc, -2), self._tiled(self.scale, -2)).log_prob(z).sum(-1)
        return log_density(self.log_share, self.loc, self.scale, z)


class BoundedDirichletPrior(_RandomMeasure):
    """The prior: π ~ Dir(B / K₀, …) over the K₀ atoms that take part, and z_k ~ N(μ, diag σ²), independent.

    log_total: log B (…), in the paper of B = α^p + α^Δ n for n vectors. loc, scale: (…, p). mask: (…, M), as the
    posterior's. places: κ.
    """

    reparametrized_params: ClassVar[list[str]] = ["log_total", "loc", "scale"]
    pytree_data_fields = ("log_total", "loc", "scale", "mask_of_components")
    pytree_aux_fields = ("places",)

    def __init__(
        self,
        log_total: Array,
        loc: Array,
        scale: Array,
        mask: Array,
        *,
        places: int = 1,
        validate_args: bool | None = None,
    ) -> None:
        _check(places, loc.shape, scale.shape)
        batch = jnp.broadcast_shapes(log_total.shape, mask.shape[:-1], loc.shape[:-1])
        self.places = places
        self.mask_of_components = jnp.broadcast_to(jnp.asarray(mask, bool), (*batch, mask.shape[-1]))
        self.log_total = jnp.broadcast_to(log_total, batch)
        self.loc, self.scale = (jnp.broadcast_to(x, (*batch, x.shape[-1])) for x in (loc, scale))
        event = (places * mask.shape[-1], loc.shape[-1] + 1)
        super().__init__(batch, event, validate_args=validate_args)

    @property
    def weights(self) -> LogDirichlet:
        each = (self.log_total - self.log_atoms)[..., None]
        return LogDirichlet(each, self._tiled(self.mask_of_components), validate_args=False)

    @property
    def _dtype(self) -> Any:
        return self.log_total.dtype

    def _draw_locations(self, key: Array, shape: tuple[int, ...]) -> tuple[Array, Array | None]:
        noise = jax.random.normal(key, (*shape, self.loc.shape[-1]), self.loc.dtype)
        return self.loc[..., None, :] + self.scale[..., None, :] * noise, None

    def _locate(self, z: Array) -> Array:
        return dist.Normal(self.loc[..., None, :], self.scale[..., None, :]).log_prob(z).sum(-1)


class Regularisers(NamedTuple):
    """Each of the batch shape, in nats. weights: L_D ≥ 0. locations: L_G ≥ 0."""

    weights: Array
    locations: Array


def regularisers(q: BoundedDirichletProcess, p: BoundedDirichletPrior) -> Regularisers:
    """The paper's two penalties, to be weighted by λ_D and λ_G, on a posterior of either scheme.

    L_D = KL(Dir(A / K₀, …)‖Dir(B / K₀, …)) and L_G = K₀ Σ_i (α_i / A) KL(N_i‖N). They depend on single α_i through their
    shares in L_G alone, and let components vanish. On a "stratified" posterior they are no bound of anything; on a
    "mixture" their sum is at least the KL.
    """
    _check_same(q, p)
    atoms = jnp.exp(q.log_atoms)
    weights = dirichlet_kl(q.components.log_total, p.log_total, atoms)
    return Regularisers(weights, atoms * (jnp.exp(q.log_share) * _location_kl(q, p)).sum(-1))


@kl_divergence.register(BoundedDirichletProcess, BoundedDirichletPrior)
def _kl(q: BoundedDirichletProcess, p: BoundedDirichletPrior) -> Array:
    """KL(q‖p), exact if "stratified"; of a "mixture" the upper bound L_D + L_G, `regularisers`; or q's penalties.

    That bounds the KL because the KL of a mixture of the N_i to N is at most the mixture of theirs, so that
    −E log p(x | F) + L_D + L_G stays an upper bound of −log p(x), and is exact where all N_i agree. The exact KL grows
    without limit as any α_i → 0.
    """
    if q.penalties or q.scheme == "mixture":
        found, (of_weights, of_locations) = regularisers(q, p), q.penalties or (1.0, 1.0)
        return of_weights * found.weights + of_locations * found.locations
    _check_same(q, p)
    return kl_divergence(q.weights, p.weights) + q.places * _location_kl(q, p).sum(-1)


def _rows(x: Array, chosen: Array) -> Array:
    """x (…, M, p) at the components `chosen` (S…, …, K): (S…, …, K, p)."""
    batch, (components, width) = x.shape[:-2], x.shape[-2:]
    first = jnp.arange(math.prod(batch)).reshape(*batch, 1) * components
    return x.reshape(-1, width)[chosen + first]


def _location_kl(q: BoundedDirichletProcess, p: BoundedDirichletPrior) -> Array:
    """KL(N_i‖N) (…, M), 0 for components that are not real."""
    return normal_kl(q.loc, q.scale, p.loc[..., None, :], p.scale[..., None, :], q.mask_of_components)


def _check(places: int, loc: tuple[int, ...], scale: tuple[int, ...]) -> None:
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
