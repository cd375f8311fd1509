"""Multilayer perceptrons on NumPyro."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from .module import Realised
from .precision import product


class MLP(Realised):
    """A function from vectors to vectors: mlp(x (…, inputs)) is (…, outputs)."""

    def __call__(self, x: Array, onto: Array | None = None) -> Array:
        """onto: `project` of the inputs that stand before x."""
        activate = activation(self.spec.activation)
        for layer in range(len(self.spec.hidden) + 1):
            weight, bias = self.weights[f"weight_{layer}"], self.weights[f"bias_{layer}"]
            if layer:
                x = product(activate(x), weight) + bias
            else:
                x = product(x, weight) + bias if onto is None else onto + product(x, weight[:, -x.shape[-1] :])
        return activate(x) if self.spec.activate_outputs else x

    def project(self, x: Array) -> Array:
        """What the first inputs add to the first layer, with its bias: for all steps of a loop at once."""
        return product(x, self.weights["weight_0"][:, : x.shape[-1]]) + self.weights["bias_0"]


def activation(name: str) -> Callable[[Array], Array]:
    return {"tanh": jnp.tanh, "relu": jax.nn.relu, "softplus": jax.nn.softplus}[name]
