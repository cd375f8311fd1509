"""Engine-neutral weights: name → array."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..models.errors import BadInput


def check(weights: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuses weights that lack an array, have one too many, or one of another shape.

    Raises:
        BadInput: names the first array that does not fit.
    """
    for name, shape in shapes.items():
        if name not in weights:
            raise BadInput(f"the weights lack {name!r} of shape {shape}: they are of another pair, or truncated")
        if tuple(weights[name].shape) != tuple(shape):
            raise BadInput(f"the weight {name!r} has shape {tuple(weights[name].shape)}; the recipe needs {tuple(shape)}")
    for name in weights:
        if name not in shapes:
            raise BadInput(f"the weights hold {name!r}, which this recipe does not have: they are of another pair")
