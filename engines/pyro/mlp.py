"""Multilayer perceptrons on Pyro."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from .module import Realised
from .precision import _linear, onto

Rest = Callable[[Tensor, Tensor], Tensor]
"""A network without its first inputs: of the others and of what `project` gave, at one step."""


class MLP(Realised):
    """A function from vectors to vectors: mlp(x (…, inputs)) is (…, outputs)."""

    def forward(self, x: Tensor) -> Tensor:
        return self._after(_linear(x, *self._layer(0)))

    def project(self, x: Tensor) -> tuple[Tensor, Rest]:
        """The first layer's sum over its first inputs, for all steps of a loop at once; and `Rest` of the network."""
        weight, bias = self._layer(0)
        width = x.shape[-1]
        others = weight[:, width:]  # once, not at each step: the backward of a slice fills a tensor of zeros
        return _linear(x, weight[:, :width], bias), lambda x, projected: self._after(onto(x, projected, others))

    def _after(self, x: Tensor) -> Tensor:
        """From the first layer's sum on."""
        activate = activation(self.spec.activation)
        for layer in range(1, len(self.spec.hidden) + 1):
            x = _linear(activate(x), *self._layer(layer))
        return activate(x) if self.spec.activate_outputs else x

    def _layer(self, number: int) -> tuple[Tensor, Tensor]:
        return getattr(self, f"weight_{number}"), getattr(self, f"bias_{number}")


def activation(name: str) -> Callable[[Tensor], Tensor]:
    return {"tanh": torch.tanh, "relu": torch.relu, "softplus": F.softplus}[name]
