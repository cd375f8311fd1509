"""Priors p(z) on Pyro: prior() is a distribution over one datum's latent."""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.nn import functional as F

from ...models import priors
from ...models.spec import Network
from .discrete import Bernoulli, OneHotCategorical
from .distributions import PAD
from .flows import FlowNormal, layers_of
from .mlp import MLP
from .module import Realised
from .precision import _linear
from .spherical import HypersphericalUniform as UniformOnSphere


class _Placed(Realised):
    """A prior without weights enough to tell its type and its place: `zero` (Z,) does."""

    zero: Tensor

    def __init__(self, network: Network, weights: Any, dtype: torch.dtype, precision: str) -> None:
        super().__init__(network, weights, dtype, precision)
        self.register_buffer("zero", torch.zeros(network.spec.dim, dtype=dtype), persistent=False)


class StandardNormal(_Placed):
    """p(z) = N(0, I): prior() is a Normal of event shape (Z,)."""

    def forward(self) -> dist.TorchDistribution:
        return dist.Normal(self.zero, torch.ones_like(self.zero), validate_args=False).to_event(1)


class LearnedNormal(Realised):
    """p(z) = N(m, diag s²): prior() is a Normal of event shape (Z,)."""

    loc: Tensor
    log_variance: Tensor

    def forward(self) -> dist.TorchDistribution:
        return dist.Normal(self.loc, (0.5 * self.log_variance).exp(), validate_args=False).to_event(1)


class GaussianMixture(Realised):
    """p(z) = Σ_k π_k N(m_k, diag s_k²): prior() has event shape (Z,)."""

    logits: Tensor
    loc: Tensor
    log_variance: Tensor

    def forward(self) -> dist.TorchDistribution:
        normals = dist.Normal(self.loc, (0.5 * self.log_variance).exp(), validate_args=False).to_event(1)
        chosen = dist.Categorical(logits=self.logits, validate_args=False)
        return dist.MixtureSameFamily(chosen, normals, validate_args=False)


class VampPrior(Realised):
    """p(z): prior() is the mixture of the posterior at the pseudo-inputs; the pair's networks are handed in."""

    inputs: Tensor
    reads = ("encoder", "posterior")

    def forward(self, *, encoder: Any, posterior: Any) -> dist.TorchDistribution:
        if self.inputs.dim() == 3:
            h = encoder.read(self.inputs)
        elif "embedding" in self.sizes:
            tokens = self.inputs.long()
            h = encoder(tokens, (tokens != PAD).sum(-1))
        else:
            h = encoder(self.inputs)
        chosen = dist.Categorical(logits=self.inputs.new_zeros(len(self.inputs)), validate_args=False)
        return dist.MixtureSameFamily(chosen, posterior(h), validate_args=False)


class ConditionalNormal(MLP):
    """p(z | c): prior(c (…, C)) is a Normal of event shape (Z,)."""

    def forward(self, x: Tensor) -> dist.TorchDistribution:
        loc, log_variance = super().forward(x).chunk(2, -1)
        return dist.Normal(loc, (0.5 * log_variance).exp(), validate_args=False).to_event(1)


class GatedTransition(Realised):
    """p(z_t | z_{t-1}): transition(z (…, Z)) is a Normal of event shape (Z,)."""

    def start(self, shape: tuple[int, ...]) -> Tensor:
        """z_0 with these leading dimensions."""
        return self.get_parameter("first").expand(*shape, -1)

    def forward(self, z: Tensor) -> dist.TorchDistribution:
        of_gate, of_proposed = self._linear("in", z).relu().chunk(2, -1)
        gate, proposed = self._linear("gate", of_gate).sigmoid(), self._linear("proposed", of_proposed)
        loc = torch.lerp(z + self._linear("loc", z), proposed, gate)
        scale = F.softplus(self._linear("scale", proposed.relu()))
        return dist.Normal(loc, scale, validate_args=False).to_event(1)

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return _linear(x, self.get_parameter(f"weight_{name}"), self.get_parameter(f"bias_{name}"))


class FlowPrior(_Placed):
    """p(z): prior() is a FlowNormal that normalises z."""

    def forward(self) -> dist.TorchDistribution:
        layers = layers_of(self.spec.flow, self.get_parameter, self.spec.dim)
        return FlowNormal(self.zero, torch.ones_like(self.zero), self.spec.flow, layers, normalising=True)


class HypersphericalUniform(_Placed):
    """p(z) uniform on the sphere: prior() is a HypersphericalUniform of event shape (Z,)."""

    def forward(self) -> dist.TorchDistribution:
        zero = self.zero
        return UniformOnSphere(self.spec.dim, dtype=zero.dtype, device=zero.device, validate_args=False)


class UniformBox(_Placed):
    """p(z) uniform in [low, high]^Z: prior() is a Uniform of event shape (Z,)."""

    def forward(self) -> dist.TorchDistribution:
        low, high = self.zero + self.spec.low, self.zero + self.spec.high
        return dist.Uniform(low, high, validate_args=False).to_event(1)


class IndependentBernoulli(_Placed):
    """p(z) = Π Bernoulli(probability): prior() is a Bernoulli of event shape (Z,)."""

    def forward(self) -> dist.TorchDistribution:
        logit = math.log(self.spec.probability) - math.log1p(-self.spec.probability)
        return Bernoulli(logits=self.zero + logit, validate_args=False).to_event(1)


class Categorical(_Placed):
    """p(z) over unit vectors: prior() is a OneHotCategorical of event shape (Z,)."""

    logits: Tensor

    def forward(self) -> dist.TorchDistribution:
        return OneHotCategorical(logits=self.logits if self.spec.learned else self.zero, validate_args=False)


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
