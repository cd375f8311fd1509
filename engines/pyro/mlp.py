"""Multilayer perceptrons on Pyro."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from .module import Realised


class MLP(Realised):
    """A function from vectors to vectors: mlp(x (…, inputs)) is (…, outputs)."""

    def forward(self, x: Tensor) -> Tensor:
        activate = activation(self.spec.activation)
        for layer in range(len(self.spec.hidden) + 1):
            if layer:
                x = activate(x)
            x = F.linear(x, self.get_parameter(f"weight_{layer}"), self.get_parameter(f"bias_{layer}"))
        return activate(x) if self.spec.activate_outputs else x


def activation(name: str) -> Callable[[Tensor], Tensor]:
    return {"tanh": torch.tanh, "relu": torch.relu, "softplus": F.softplus}[name]
