"""Engine-neutral weights: name → array."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..models.errors import BadInput


def check(weights: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]], what: str = "weights") -> None:
    """Refuses weights (or an optimiser's slots) that lack an array, have one too many, or one of another shape.

    Raises:
        BadInput: names the first array that does not fit.
    """
    for name, shape in shapes.items():
        if name not in weights:
            raise BadInput(f"the {what} lack {name!r} of shape {shape}: they are of another pair, or truncated")
        if tuple(weights[name].shape) != tuple(shape):
            found = tuple(weights[name].shape)
            raise BadInput(f"of the {what}, {name!r} has shape {found}; the recipe needs {tuple(shape)}")
    for name in weights:
        if name not in shapes:
            raise BadInput(f"the {what} hold {name!r}, which this recipe does not have: they are of another pair")
