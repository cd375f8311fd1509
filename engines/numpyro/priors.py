"""Priors p(z) on NumPyro: prior() is a distribution over one datum's latent."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array, lax

from ...models import priors
from .discrete import Bernoulli, OneHotCategorical
from .distributions import PAD
from .flows import FlowNormal, layers_of
from .mlp import MLP
from .module import Realised
from .precision import product
from .spherical import HypersphericalUniform as UniformOnSphere


class StandardNormal(Realised):
    """p(z) = N(0, I): prior() is a Normal of event shape (Z,)."""

    def __call__(self) -> dist.Distribution:
        return dist.Normal(0.0, 1.0).expand([self.spec.dim]).to_event(1)


class LearnedNormal(Realised):
    """p(z) = N(m, diag s²): prior() is a Normal of event shape (Z,)."""

    def __call__(self) -> dist.Distribution:
        return dist.Normal(self.weights["loc"], jnp.exp(0.5 * self.weights["log_variance"])).to_event(1)


class GaussianMixture(Realised):
    """p(z) = Σ_k π_k N(m_k, diag s_k²): prior() has event shape (Z,)."""

    def __call__(self) -> dist.Distribution:
        normals = dist.Normal(self.weights["loc"], jnp.exp(0.5 * self.weights["log_variance"])).to_event(1)
        return dist.MixtureSameFamily(dist.Categorical(logits=self.weights["logits"]), normals)


class VampPrior(Realised):
    """p(z): prior() is the mixture of the posterior at the pseudo-inputs; the pair's networks are handed in."""

    reads = ("encoder", "posterior")

    def __call__(self, *, encoder: Any, posterior: Any) -> dist.Distribution:
        inputs = self.weights["inputs"]
        inputs = lax.stop_gradient(inputs) if self.spec.inputs == "data" else inputs
        if inputs.ndim == 3:
            h = encoder.read(inputs)
        elif "embedding" in dict(self.sizes):
            tokens = inputs.astype(jnp.int32)
            h = encoder(tokens, (tokens != PAD).sum(-1))
        else:
            h = encoder(inputs)
        chosen = dist.Categorical(logits=jnp.zeros(len(inputs), inputs.dtype))
        return dist.MixtureSameFamily(chosen, posterior(h))


class ConditionalNormal(MLP):
    """p(z | c): prior(c (…, C)) is a Normal of event shape (Z,)."""

    def __call__(self, x: Array) -> dist.Distribution:
        loc, log_variance = jnp.split(super().__call__(x), 2, axis=-1)
        return dist.Normal(loc, jnp.exp(0.5 * log_variance)).to_event(1)


class GatedTransition(Realised):
    """p(z_t | z_{t-1}): transition(z (…, Z)) is a Normal of event shape (Z,)."""

    def start(self, shape: tuple[int, ...]) -> Array:
        """z_0 with these leading dimensions."""
        return jnp.broadcast_to(self.weights["first"], (*shape, self.spec.dim))

    def __call__(self, z: Array) -> dist.Distribution:
        of_gate, of_proposed = jnp.split(jax.nn.relu(self._linear("in", z)), 2, axis=-1)
        gate, proposed = jax.nn.sigmoid(self._linear("gate", of_gate)), self._linear("proposed", of_proposed)
        loc = z + self._linear("loc", z)
        scale = jax.nn.softplus(self._linear("scale", jax.nn.relu(proposed)))
        return dist.Normal(loc + gate * (proposed - loc), scale).to_event(1)

    def _linear(self, name: str, x: Array) -> Array:
        return product(x, self.weights[f"weight_{name}"]) + self.weights[f"bias_{name}"]


class FlowPrior(Realised):
    """p(z): prior() is a FlowNormal that normalises z."""

    def __call__(self) -> dist.Distribution:
        layers = layers_of(self.spec.flow, self.weights.__getitem__, self.spec.dim)
        zero = jnp.zeros(self.spec.dim)
        return FlowNormal(zero, zero + 1, self.spec.flow, layers, normalising=True)


class HypersphericalUniform(Realised):
    """p(z) uniform on the sphere: prior() is a HypersphericalUniform of event shape (Z,)."""

    def __call__(self) -> dist.Distribution:
        return UniformOnSphere(self.spec.dim)


class UniformBox(Realised):
    """p(z) uniform in [low, high]^Z: prior() is a Uniform of event shape (Z,)."""

    def __call__(self) -> dist.Distribution:
        return dist.Uniform(self.spec.low, self.spec.high).expand([self.spec.dim]).to_event(1)


class IndependentBernoulli(Realised):
    """p(z) = Π Bernoulli(probability): prior() is a Bernoulli of event shape (Z,)."""

    def __call__(self) -> dist.Distribution:
        logit = math.log(self.spec.probability) - math.log1p(-self.spec.probability)
        return Bernoulli(jnp.full(self.spec.dim, logit)).to_event(1)


class Categorical(Realised):
    """p(z) over unit vectors: prior() is a OneHotCategorical of event shape (Z,)."""

    def __call__(self) -> dist.Distribution:
        return OneHotCategorical(self.weights["logits"] if self.spec.learned else jnp.zeros(self.spec.dim))


PRIORS: dict[type, type[Realised]] = {
    priors.StandardNormal: StandardNormal,
    priors.LearnedNormal: LearnedNormal,
    priors.GaussianMixture: GaussianMixture,
    priors.VampPrior: VampPrior,
    priors.ConditionalNormal: ConditionalNormal,
    priors.GatedTransition: GatedTransition,
    priors.FlowPrior: FlowPrior,
    priors.HypersphericalUniform: HypersphericalUniform,
    priors.UniformBox: UniformBox,
    priors.IndependentBernoulli: IndependentBernoulli,
    priors.Categorical: Categorical,
}
