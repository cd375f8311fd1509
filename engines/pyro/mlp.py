"""Multilayer perceptrons on Pyro."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .module import Realised


class MLP(Realised):
    """A function from vectors to vectors: mlp(x (…, inputs)) is (…, outputs)."""

    def forward(self, x: Tensor) -> Tensor:
        activation = {"tanh": torch.tanh, "relu": torch.relu, "softplus": F.softplus}[self.spec.activation]
        for layer in range(len(self.spec.hidden) + 1):
            if layer:
                x = activation(x)
            x = F.linear(x, self.get_parameter(f"weight_{layer}"), self.get_parameter(f"bias_{layer}"))
        return activation(x) if self.spec.activate_outputs else x
