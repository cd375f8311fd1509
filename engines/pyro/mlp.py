"""Multilayer perceptrons on Pyro."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from .module import Realised


class MLP(Realised):
    """A function from vectors to vectors: mlp(x (…, inputs)) is (…, outputs)."""

    def forward(self, x: Tensor, onto: Tensor | None = None) -> Tensor:
        """onto: `project` of the inputs that stand before x."""
        activate = activation(self.spec.activation)
        for layer in range(len(self.spec.hidden) + 1):
            weight, bias = self.get_parameter(f"weight_{layer}"), self.get_parameter(f"bias_{layer}")
            if layer:
                x = F.linear(activate(x), weight, bias)
            else:
                x = F.linear(x, weight, bias) if onto is None else onto + F.linear(x, weight[:, -x.shape[-1] :])
        return activate(x) if self.spec.activate_outputs else x

    def project(self, x: Tensor) -> Tensor:
        """What the first inputs add to the first layer, with its bias: for all steps of a loop at once."""
        return F.linear(x, self.get_parameter("weight_0")[:, : x.shape[-1]], self.get_parameter("bias_0"))


def activation(name: str) -> Callable[[Tensor], Tensor]:
    return {"tanh": torch.tanh, "relu": torch.relu, "softplus": F.softplus}[name]
