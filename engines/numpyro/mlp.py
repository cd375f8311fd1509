"""Multilayer perceptrons on NumPyro."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from .module import Realised
from .precision import onto

Rest = Callable[[Array, Array], Array]
"""A network without its first inputs: of the others and of what `project` gave, at one step."""


class MLP(Realised):
    """A function from vectors to vectors: mlp(x (…, inputs)) is (…, outputs)."""

    def __call__(self, x: Array) -> Array:
        weight, bias = self._layer(0)
        return self._after(onto(x, bias, weight))

    def project(self, x: Array) -> tuple[Array, Rest]:
        """The first layer's sum over its first inputs, for all steps of a loop at once; and `Rest` of the network."""
        weight, bias = self._layer(0)
        width = x.shape[-1]
        others = weight[:, width:]  # once, not at each step: the backward of a slice fills an array of zeros
        projected = onto(x, bias, weight[:, :width])
        return projected, lambda x, projected: self._after(onto(x, projected, others))

    def _after(self, x: Array) -> Array:
        """From the first layer's sum on."""
        activate = activation(self.spec.activation)
        for layer in range(1, len(self.spec.hidden) + 1):
            weight, bias = self._layer(layer)
            x = onto(activate(x), bias, weight)
        return activate(x) if self.spec.activate_outputs else x

    def _layer(self, number: int) -> tuple[Array, Array]:
        return self.weights[f"weight_{number}"], self.weights[f"bias_{number}"]


def activation(name: str) -> Callable[[Array], Array]:
    return {"tanh": jnp.tanh, "relu": jax.nn.relu, "softplus": jax.nn.softplus}[name]
