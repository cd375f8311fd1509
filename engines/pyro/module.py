"""What every realised spec is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

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
        self.moments: dict[str, Tensor] = {}
        for name, weight in network.spec.layout(**network.sizes).items():
            tensor = torch.tensor(weights[name], dtype=dtype)
            self.register_parameter(name, nn.Parameter(tensor, requires_grad=weight.trained))

    def report(self, **moments: Tensor) -> None:
        """What the running moments of these names are of this batch: of several passes over it, the first counts."""
        for name, moment in moments.items():
            self.moments.setdefault(name, moment.detach())


@contextmanager
def _still(parameters: Iterable[Tensor]) -> Iterator[None]:
    """None of these wants a gradient meanwhile, which spares forming it."""
    wanted = [parameter for parameter in parameters if parameter.requires_grad]
    for parameter in wanted:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in wanted:
            parameter.requires_grad_(True)
