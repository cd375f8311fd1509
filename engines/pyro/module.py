"""What every realised spec is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from ...models.spec import Network


class Realised(nn.Module):
    """A spec with its weights."""

    spec: Any
    sizes: dict[str, int]
    reads: ClassVar[tuple[str, ...]] = ()
    """Other networks of the pair that a call is handed by keyword, with their weights."""

    def __init__(self, network: Network, weights: Mapping[str, np.ndarray], dtype: torch.dtype, precision: str) -> None:
        super().__init__()
        self.spec, self.sizes, self.precision = network.spec, dict(network.sizes), precision
        for name in network.spec.layout(**network.sizes):
            self.register_parameter(name, nn.Parameter(torch.tensor(weights[name], dtype=dtype)))
