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

    def __call__(self, x: Array, *, key: Array | None = None) -> Array:
        activate = activation(self.spec.activation)
        for layer in range(len(self.spec.hidden) + 1):
            if layer:
                x = activate(x)
            x = product(x, self.weights[f"weight_{layer}"]) + self.weights[f"bias_{layer}"]
        return activate(x) if self.spec.activate_outputs else x


def activation(name: str) -> Callable[[Array], Array]:
    return {"tanh": jnp.tanh, "relu": jax.nn.relu, "softplus": jax.nn.softplus}[name]
