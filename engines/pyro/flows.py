"""Normalising flows on Pyro: a normal sent through invertible layers, with its exact density."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints
from torch.nn import functional as F

from ...models import flows

Layer = tuple[Tensor, ...]


class FlowNormal(dist.TorchDistribution):
    """f(ε), ε ~ N(loc, diag scale²), event shape (Z,); or, where `normalising`, f⁻¹(ε).

    The density of its own last draw needs no inverse; that of any other value does where not `normalising`.

    Args:
        loc, scale: (…, Z).
        layers: of f, from `layers_of`.
    """

    arg_constraints = {}  # noqa: RUF012  # pyright: ignore[reportAssignmentType]
    support = constraints.real_vector  # pyright: ignore[reportAssignmentType]
    has_rsample = True

    def __init__(
        self, loc: Tensor, scale: Tensor, spec: flows.FlowSpec, layers: tuple[Layer, ...], normalising: bool = False
    ) -> None:
        self.base: Any = dist.Normal(loc, scale, validate_args=False).to_event(1)
        self.spec, self.layers, self.normalising = spec, layers, normalising
        self._drawn: tuple[Tensor, ...] = ()
        super().__init__(self.base.batch_shape, self.base.event_shape, validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> FlowNormal:
        normal = self.base.expand(batch_shape).base_dist
        return FlowNormal(normal.loc, normal.scale, self.spec, self.layers, self.normalising)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        noise = self.base.rsample(torch.Size(sample_shape))
        z, log_determinant = (inverse if self.normalising else forward)(self.spec, self.layers, noise)
        change = log_determinant if self.normalising else -log_determinant
        self._drawn = (z, self.base.log_prob(noise) + change)
        return z

    def log_prob(self, value: Tensor) -> Tensor:
        if self._drawn and value is self._drawn[0]:
            return self._drawn[1]
        if self.normalising:
            noise, log_determinant = forward(self.spec, self.layers, value)
            return self.base.log_prob(noise) + log_determinant
        noise, log_determinant = inverse(self.spec, self.layers, value)
        return self.base.log_prob(noise) - log_determinant


def layers_of(
    spec: flows.FlowSpec, weight: Callable[[str], Tensor], latent: int, h: Tensor | None = None
) -> tuple[Layer, ...]:
    """What each layer computes with: `weight` gives an array by its name in `spec.layout`; h (…, H) is the context."""

    def context(layer: int) -> Tensor:
        bias = weight(f"bias_{layer}")
        return bias if h is None else F.linear(h, weight(f"context_{layer}"), bias)

    def masked(layer: int) -> Layer:
        assert isinstance(spec, flows.MaskedFlow)
        inputs, outputs, given = (weight("bias_0").new_tensor(mask) for mask in spec.masks(layer, latent))
        w_in, w_out = weight(f"input_{layer}") * inputs, weight(f"output_{layer}") * outputs
        return w_in, context(layer), w_out, weight(f"offset_{layer}"), given

    planar = isinstance(spec, flows.PlanarFlow)
    return tuple((context(layer),) if planar else masked(layer) for layer in range(spec.layers))


def forward(spec: flows.FlowSpec, layers: tuple[Layer, ...], z: Tensor) -> tuple[Tensor, Tensor]:
    """f(z) (…, Z), and log |det ∂f/∂z| (…)."""
    total = z.new_zeros(())
    for layer in layers:
        z, log_determinant = _FORWARD[type(spec)](layer, z)
        total = total + log_determinant
    return z, total


def inverse(spec: flows.FlowSpec, layers: tuple[Layer, ...], z: Tensor) -> tuple[Tensor, Tensor]:
    """f⁻¹(z) (…, Z), and log |det ∂f/∂z| (…) there."""
    total = z.new_zeros(())
    for layer in reversed(layers):
        z = _INVERSE[type(spec)](layer, z)
        total = total + _FORWARD[type(spec)](layer, z)[1]
    return z, total


def _planar_parts(layer: Layer, latent: int) -> tuple[Tensor, ...]:
    """w, u, b and wᵀu, u moved along w so that wᵀu > −1."""
    u, w, b = layer[0].split([latent, latent, 1], -1)
    along = (w * u).sum(-1, keepdim=True)
    u = u + (F.softplus(along) - 1 - along) * w / (w * w).sum(-1, keepdim=True)
    return w, u, b, F.softplus(along) - 1


def _planar(layer: Layer, z: Tensor) -> tuple[Tensor, Tensor]:
    w, u, b, along = _planar_parts(layer, z.shape[-1])
    bend = ((w * z).sum(-1, keepdim=True) + b).tanh()
    return z + u * bend, torch.log1p(along * (1 - bend**2)).squeeze(-1)


def _planar_inverse(layer: Layer, z: Tensor) -> Tensor:
    """a = wᵀ f⁻¹(z) solves a + wᵀu tanh(a + b) = wᵀz: found by bisection; a Newton step gives it its gradient."""
    w, u, b, along = _planar_parts(layer, z.shape[-1])
    target = (w * z).sum(-1, keepdim=True)
    with torch.no_grad():
        low, high = target - along.abs(), target + along.abs()
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            beyond = middle + along * (middle + b).tanh() > target
            low, high = torch.where(beyond, low, middle), torch.where(beyond, middle, high)
        a = (low + high) / 2
    bend = (a + b).tanh()
    a = a - (a + along * bend - target) / (1 + along * (1 - bend**2)).detach()
    return z - u * (a + b).tanh()


def _shift_and_scale(layer: Layer, z: Tensor) -> tuple[Tensor, Tensor]:
    w_in, context, w_out, offset, given = layer
    hidden = (F.linear(z, w_in) + context).tanh()
    shift, scale = ((F.linear(hidden, w_out) + offset) * given).chunk(2, -1)
    return shift, scale


def _coupling(layer: Layer, z: Tensor) -> tuple[Tensor, Tensor]:
    shift, scale = _shift_and_scale(layer, z)
    return z * scale.tanh().exp() + shift, scale.tanh().sum(-1)


def _coupling_inverse(layer: Layer, z: Tensor) -> Tensor:
    shift, scale = _shift_and_scale(layer, z)
    return (z - shift) * (-scale.tanh()).exp()


def _autoregressive(layer: Layer, z: Tensor) -> tuple[Tensor, Tensor]:
    shift, scale = _shift_and_scale(layer, z)
    gate = (scale + 2).sigmoid()
    return gate * z + (1 - gate) * shift, F.logsigmoid(scale + 2).sum(-1)


def _autoregressive_inverse(layer: Layer, z: Tensor) -> Tensor:
    """Every pass makes one more dimension right."""
    found = torch.zeros_like(z)
    for _ in range(z.shape[-1]):
        shift, scale = _shift_and_scale(layer, found)
        gate = (scale + 2).sigmoid()
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
