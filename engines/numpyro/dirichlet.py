"""The Dirichlet distribution of log π, exact for concentrations from 1e-8 to 1e8, with slots that take no part."""

from __future__ import annotations

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array
from jax.nn import logsumexp
from jax.scipy.special import digamma, polygamma
from numpyro.distributions import constraints
from numpyro.distributions.kl import kl_divergence
from numpyro.distributions.util import validate_sample

from ...models.errors import BadInput
from ...models.measures import NEVER
from .dirichlet_kl import beyond_poisson, log_gamma_excess, poisson_kl

MASKED = NEVER
"""log π of a slot that takes no part."""


class _LogSimplex(constraints._SingletonConstraint):
    """Logarithms of weights that sum to one."""

    event_dim = 1
    reltol = 100.0
    """Relative to the resolution of the dtype."""

    def __call__(self, x: Any) -> Any:
        return jnp.abs(logsumexp(x, axis=-1)) <= self.reltol * jnp.finfo(x.dtype).eps

    def feasible_like(self, prototype: Any) -> Any:
        return jnp.full_like(prototype, -jnp.log(prototype.shape[-1]))


log_simplex = _LogSimplex()
_LARGE = 100.0


class LogDirichlet(dist.Distribution):
    """log π (K,) of π ~ Dirichlet(α).

    log_concentration: log α (…, K). mask: (…, K), true where a slot takes part, at least once a row; the other slots are
    `MASKED`, whatever their parameters, and get no gradient. float32 or float64.

    A draw is log g − log Σ g of Gammas g ~ Gamma(α) made in the log: log g = log Gamma(α + 1) + α⁻¹ log U, which has a
    pathwise gradient in log α, also where g itself is below the smallest number. Unbiased for expectations of π too, but
    where α is tiny those are carried by the rare draws, a share of about α, in which two slots compare.
    """

    arg_constraints: dict[str, Any] = {"log_concentration": constraints.real_vector}  # noqa: RUF012 - as NumPyro declares it
    support: Any = log_simplex
    reparametrized_params: ClassVar[list[str]] = ["log_concentration"]
    pytree_data_fields = ("log_concentration", "mask_of_slots")

    def __init__(
        self, log_concentration: Array, mask: Array | None = None, *, validate_args: bool | None = None
    ) -> None:
        if not log_concentration.ndim:
            raise BadInput("the log concentrations of a LogDirichlet have a last dimension of slots, not shape ()")
        mask = jnp.ones_like(log_concentration, bool) if mask is None else jnp.asarray(mask, bool)
        self.mask_of_slots, log_concentration = jnp.broadcast_arrays(mask, log_concentration)
        self.log_concentration = jnp.where(self.mask_of_slots, log_concentration, 0)
        batch, event = log_concentration.shape[:-1], log_concentration.shape[-1:]
        super().__init__(batch, event, validate_args=validate_args)

    @property
    def log_total(self) -> Array:
        """log Σ α, of the batch shape."""
        return logsumexp(jnp.where(self.mask_of_slots, self.log_concentration, MASKED), axis=-1)

    @property
    def log_share(self) -> Array:
        """log (α / Σα) (…, K), and `MASKED` for slots that take no part."""
        return jnp.where(self.mask_of_slots, self.log_concentration - self.log_total[..., None], MASKED)

    def sample(self, key: Array | None, sample_shape: tuple[int, ...] = ()) -> Array:
        """sample_shape + batch shape + (K,)."""
        shape = (*sample_shape, *self.log_concentration.shape)
        log = jnp.broadcast_to(self.log_concentration, shape)
        gamma_key, waiting_key = jax.random.split(jnp.asarray(key))
        waiting = jax.random.exponential(waiting_key, shape, log.dtype)  # −log U
        log_gamma = _draw(gamma_key, jnp.exp(log) + 1) - waiting * jnp.exp(-log)
        log_gamma = jnp.where(self.mask_of_slots, log_gamma, MASKED)
        return jnp.where(self.mask_of_slots, log_gamma - logsumexp(log_gamma, axis=-1, keepdims=True), MASKED)

    @validate_sample
    def log_prob(self, value: Array, intermediates: Any = None) -> Array:
        """(…, K) to (…), in nats: the density of π, not of log π, against Lebesgue measure on all but one of its slots.

        Σ (α − 1) log π + log Γ(Σα) − Σ log Γ(α) with Σ α (log π − log (α / Σα)) as a divergence, which holds its digits
        where α is large, and uses that π sums to one: so do its gradients.
        """
        value = jnp.where(self.mask_of_slots, value, MASKED)
        apart = jnp.exp(self.log_total) * self._sum(poisson_kl(value, self.log_share))
        excess = log_gamma_excess(self.log_concentration)[0]
        return log_gamma_excess(self.log_total)[0] - apart - self._sum(excess + value)

    @property
    def mean(self) -> Array:
        """E[log π] = ψ(α) − ψ(Σα), batch shape + (K,)."""
        found = digamma(jnp.exp(self.log_concentration)) - digamma(jnp.exp(self.log_total))[..., None]
        return jnp.where(self.mask_of_slots, found, MASKED)

    @property
    def variance(self) -> Array:
        """Var[log π] = ψ'(α) − ψ'(Σα), batch shape + (K,)."""
        each, total = (polygamma(1, jnp.exp(log)) for log in (self.log_concentration, self.log_total))
        return jnp.where(self.mask_of_slots, each - total[..., None], 0)

    def _sum(self, terms: Array) -> Array:
        return jnp.where(self.mask_of_slots, terms, 0).sum(-1)


def _draw(key: Array, concentration: Array) -> Array:
    """log g of g ~ Gamma(a), a ≥ 1, with its implicit gradient in a."""
    drawn = jax.random.loggamma(key, jax.lax.stop_gradient(concentration), dtype=concentration.dtype)
    return _reparameterised(concentration, drawn)


@jax.custom_jvp
def _reparameterised(concentration: Array, drawn: Array) -> Array:
    return drawn


@_reparameterised.defjvp
def _reparameterised_jvp(primals, tangents):
    """JAX's own gradient up to `_LARGE`, beyond which it loses digits and time. There that of Wilson & Hilferty (1931):
    (g / a)^(1/3) is normal of mean 1 − 1/9a and variance 1/9a; exact to 2e-4 within three deviations, and to 1e-7 on average.
    """
    concentration, drawn = primals
    large = concentration > _LARGE
    within = jnp.where(large, _LARGE, concentration), jnp.where(large, _LARGE, jnp.exp(drawn))
    exact = jax.lax.random_gamma_grad(*within)  # pyright: ignore[reportCallIssue]  (its wrapper adds the dtype)
    root = jnp.exp((jnp.log(concentration) - drawn) / 3)
    approximate = ((1.5 + 1 / (6 * concentration)) * root - 0.5) / concentration
    return drawn, tangents[0] * jnp.where(large, approximate, exact / within[1])


@kl_divergence.register(LogDirichlet, LogDirichlet)
def _kl(q: LogDirichlet, p: LogDirichlet) -> Array:
    """KL(q‖p), `dirichlet_kl`; both with the same mask."""
    if q.event_shape != p.event_shape:
        raise BadInput(f"Dirichlets of {q.event_shape[0]} and {p.event_shape[0]} slots have no KL")
    totals = q.log_total, p.log_total
    apart = jnp.exp(p.log_total) * q._sum(poisson_kl(q.log_share, p.log_share))
    return apart + q._sum(beyond_poisson(q.log_concentration, p.log_concentration)) - beyond_poisson(*totals)
