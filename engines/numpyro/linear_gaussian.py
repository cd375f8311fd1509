"""The parts of the linear-Gaussian state-space pair on NumPyro."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from ...guides.linear_gaussian_guide import Gains as GainsSpec
from ...guides.linear_gaussian_guide import Smoother as SmootherSpec
from ...models.linear_gaussian import Dynamics as DynamicsSpec
from .module import Realised


class Dynamics(Realised):
    """dynamics() is a, q and r, each (D,)."""

    def __call__(self) -> tuple[Array, Array, Array]:
        weights = self.weights
        return weights["decay"], jnp.exp(weights["log_state_variance"]), jnp.exp(weights["log_noise_variance"])


class Gains(Realised):
    """gains() is w, g and s², each (D,)."""

    def __call__(self) -> tuple[Array, Array, Array]:
        return self.weights["by_state"], self.weights["by_data"], jnp.exp(self.weights["log_variance"])


LINEAR_GAUSSIAN: dict[type, type[Realised]] = {DynamicsSpec: Dynamics, GainsSpec: Gains, SmootherSpec: Realised}
