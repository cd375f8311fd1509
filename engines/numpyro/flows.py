"""Normalising flows on NumPyro: a normal sent through invertible layers, with its exact density."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array
from jax.lax import stop_gradient
from numpyro.distributions import constraints

from ...models import flows
from .precision import product

Layer = tuple[Array, ...]


class FlowNormal(dist.Distribution):
    """f(ε), ε ~ N(loc, diag scale²), event shape (Z,); or, where `normalising`, f⁻¹(ε).

    The density of its own last draw needs no inverse; that of any other value does where not `normalising`.

    Args:
        loc, scale: (…, Z).
        layers: of f, from `layers_of`.
    """

    support = constraints.real_vector  # pyright: ignore[reportAssignmentType]
    has_rsample: Any = True
    pytree_data_fields = ("loc", "scale", "layers")
    pytree_aux_fields = ("spec", "normalising")

    def __init__(
        self, loc: Array, scale: Array, spec: flows.FlowSpec, layers: tuple[Layer, ...], normalising: bool = False
    ) -> None:
        self.loc, self.scale = jnp.broadcast_arrays(loc, scale)
        self.spec, self.layers, self.normalising = spec, layers, normalising
        super().__init__(self.loc.shape[:-1], self.loc.shape[-1:])

    @property
    def base(self) -> Any:
        return dist.Normal(self.loc, self.scale).to_event(1)

    def expand(self, batch_shape: Any) -> FlowNormal:
        loc, scale = (jnp.broadcast_to(moment, (*batch_shape, *self.event_shape)) for moment in (self.loc, self.scale))
        return FlowNormal(loc, scale, self.spec, self.layers, self.normalising)

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Array:
        noise = self.base.sample(key, sample_shape)
        z, log_determinant = (inverse if self.normalising else forward)(self.spec, self.layers, noise)
        change = log_determinant if self.normalising else -log_determinant
        self._drawn = (z, self.base.log_prob(noise) + change)
        return z

    def log_prob(self, value: Array, intermediates: Any = None) -> Array:
        drawn = getattr(self, "_drawn", None)
        if drawn and value is drawn[0]:
            return drawn[1]
        if self.normalising:
            noise, log_determinant = forward(self.spec, self.layers, value)
            return self.base.log_prob(noise) + log_determinant
        noise, log_determinant = inverse(self.spec, self.layers, value)
        return self.base.log_prob(noise) - log_determinant


def layers_of(
    spec: flows.FlowSpec, weight: Callable[[str], Array], latent: int, h: Array | None = None
) -> tuple[Layer, ...]:
    """What each layer computes with: `weight` gives an array by its name in `spec.layout`; h (…, H) is the context."""

    def context(layer: int) -> Array:
        bias = weight(f"bias_{layer}")
        return bias if h is None else product(h, weight(f"context_{layer}")) + bias

    def masked(layer: int) -> Layer:
        assert isinstance(spec, flows.MaskedFlow)
        inputs, outputs, given = (jnp.asarray(mask, weight("bias_0").dtype) for mask in spec.masks(layer, latent))
        w_in, w_out = weight(f"input_{layer}") * inputs, weight(f"output_{layer}") * outputs
        return w_in, context(layer), w_out, weight(f"offset_{layer}"), given

    planar = isinstance(spec, flows.PlanarFlow)
    return tuple((context(layer),) if planar else masked(layer) for layer in range(spec.layers))


def forward(spec: flows.FlowSpec, layers: tuple[Layer, ...], z: Array) -> tuple[Array, Array]:
    """f(z) (…, Z), and log |det ∂f/∂z| (…)."""
    total = jnp.zeros((), z.dtype)
    for layer in layers:
        z, log_determinant = _FORWARD[type(spec)](layer, z)
        total = total + log_determinant
    return z, total


def inverse(spec: flows.FlowSpec, layers: tuple[Layer, ...], z: Array) -> tuple[Array, Array]:
    """f⁻¹(z) (…, Z), and log |det ∂f/∂z| (…) there."""
    total = jnp.zeros((), z.dtype)
    for layer in reversed(layers):
        z = _INVERSE[type(spec)](layer, z)
        total = total + _FORWARD[type(spec)](layer, z)[1]
    return z, total


def _planar_parts(layer: Layer, latent: int) -> tuple[Array, ...]:
    """w, u, b and wᵀu, u moved along w so that wᵀu > −1."""
    u, w, b = jnp.split(layer[0], [latent, 2 * latent], axis=-1)
    along = (w * u).sum(-1, keepdims=True)
    u = u + (jax.nn.softplus(along) - 1 - along) * w / (w * w).sum(-1, keepdims=True)
    return w, u, b, jax.nn.softplus(along) - 1


def _planar(layer: Layer, z: Array) -> tuple[Array, Array]:
    w, u, b, along = _planar_parts(layer, z.shape[-1])
    bend = jnp.tanh((w * z).sum(-1, keepdims=True) + b)
    return z + u * bend, jnp.log1p(along * (1 - bend**2)).squeeze(-1)


def _planar_inverse(layer: Layer, z: Array) -> Array:
    """a = wᵀ f⁻¹(z) solves a + wᵀu tanh(a + b) = wᵀz: found by bisection; a Newton step gives it its gradient."""
    w, u, b, along = _planar_parts(layer, z.shape[-1])
    target = (w * z).sum(-1, keepdims=True)

    def halved(_: Any, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        middle = (ends[0] + ends[1]) / 2
        beyond = middle + stop_gradient(along) * jnp.tanh(middle + stop_gradient(b)) > stop_gradient(target)
        return jnp.where(beyond, ends[0], middle), jnp.where(beyond, middle, ends[1])

    ends = stop_gradient((target - jnp.abs(along), target + jnp.abs(along)))
    a = stop_gradient(sum(jax.lax.fori_loop(0, _BISECTIONS, halved, ends)) / 2)
    bend = jnp.tanh(a + b)
    a = a - (a + along * bend - target) / stop_gradient(1 + along * (1 - bend**2))
    return z - u * jnp.tanh(a + b)


def _shift_and_scale(layer: Layer, z: Array) -> tuple[Array, Array]:
    w_in, context, w_out, offset, given = layer
    hidden = jnp.tanh(product(z, w_in) + context)
    shift, scale = jnp.split((product(hidden, w_out) + offset) * given, 2, axis=-1)
    return shift, scale


def _coupling(layer: Layer, z: Array) -> tuple[Array, Array]:
    shift, scale = _shift_and_scale(layer, z)
    return z * jnp.exp(jnp.tanh(scale)) + shift, jnp.tanh(scale).sum(-1)


def _coupling_inverse(layer: Layer, z: Array) -> Array:
    shift, scale = _shift_and_scale(layer, z)
    return (z - shift) * jnp.exp(-jnp.tanh(scale))


def _autoregressive(layer: Layer, z: Array) -> tuple[Array, Array]:
    shift, scale = _shift_and_scale(layer, z)
    gate = jax.nn.sigmoid(scale + 2)
    return gate * z + (1 - gate) * shift, jax.nn.log_sigmoid(scale + 2).sum(-1)


def _autoregressive_inverse(layer: Layer, z: Array) -> Array:
    """Every pass makes one more dimension right."""
    found = jnp.zeros_like(z)
    for _ in range(z.shape[-1]):
        shift, scale = _shift_and_scale(layer, found)
        gate = jax.nn.sigmoid(scale + 2)
        found = (z - (1 - gate) * shift) / gate
    return found


_BISECTIONS = 60
_FORWARD = {
    flows.PlanarFlow: _planar,
    flows.CouplingFlow: _coupling,
    flows.InverseAutoregressiveFlow: _autoregressive,
}
_INVERSE = {
    flows.PlanarFlow: _planar_inverse,
    flows.CouplingFlow: _coupling_inverse,
    flows.InverseAutoregressiveFlow: _autoregressive_inverse,
}
