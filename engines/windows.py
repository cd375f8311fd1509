"""Truncated backpropagation through time: a sequence in windows, whose first state is the last of the window before.

The gradient is that of Σ_w loss(window w), where the state that a window starts from counts as given: what a step says
of steps more than a window before it is left out, and memory is that of one window.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..guides.pair import Pair
from ..models.errors import BadInput
from .protocol import Objective

Array = Any


class Carry:
    """The state handed from window to window. start: None before the first; last: what the loop of a window left."""

    def __init__(self, start: Any = None) -> None:
        self.start, self.last = start, None

    def first(self, shape: tuple[int, ...], start: Callable[[tuple[int, ...]], Any]) -> Any:
        """h_1 of particles and rows `shape`: what was handed on, else `start(shape)`.

        Raises:
            BadInput: the state handed on is of another shape.
        """
        if self.start is None:
            return start(shape)
        part = self.start[0] if isinstance(self.start, tuple) else self.start
        if tuple(part.shape[:-1]) != shape:
            raise BadInput(
                f"the state carried from the window before is of particles and sequences {tuple(part.shape[:-1])}, and "
                f"this window has {shape}: the same sequences in the same order would be right"
            )
        return self.start


def windows(arrays: Mapping[str, Array], steps: int | None) -> list[dict[str, Array]]:
    """The batch in parts of `steps` steps of its x (B, T, …) and mask (B, T), the last one the rest; None: as it is."""
    if steps is None:
        return [dict(arrays)]
    length = arrays["x"].shape[1]
    return [
        {name: array[:, first : first + steps] if name in ("x", "mask") else array for name, array in arrays.items()}
        for first in range(0, length, steps)
    ]


def refuse_windows(pair: Pair, objective: Objective) -> None:
    """
    Raises:
        BadInput: the pair has no steps, or the objective is no sum over them.
    """
    if pair.steps is None:
        raise BadInput(f"fit.truncate cuts sequences, and the pair {pair.name!r} has none: leave it out")
    if not objective.additive:
        raise BadInput(
            "fit.truncate sums the objective of each window, and this one is no sum over steps: use the divergence kl "
            "without free bits, or leave fit.truncate out"
        )
