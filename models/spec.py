"""Declarative parts: frozen, typed, pure data. An engine realises a spec; a framework module in its place is used as it is."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, model_validator

Support = Literal["real", "sphere", "box", "binary", "one_hot", "measure", "vectors", "pooled"]
"""Where the draws of a family lie: ℝ^D, the unit sphere in ℝ^D, a box, {0, 1}^D, or the D unit vectors; or, for what a
decoder attends to, among random measures, sets of vectors for the words, or single vectors."""


class Spec(BaseModel):
    """A declarative part of a recipe. Unknown keys, "3" for 3, and numbers that are not finite, unless a field allows them,
    are errors; instances are immutable and hashable."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    def layout(self, **sizes: int) -> dict[str, Weight]:
        """The weights of the network this spec describes, by engine-neutral name, in PyTorch's layout."""
        return {}


def kind_unless_said(kind: str) -> BeforeValidator:
    """Of a union of specs told apart by `kind`: a table without one is of this kind."""
    return BeforeValidator(lambda value: {"kind": kind, **value} if isinstance(value, dict) else value)


class Box(Spec):
    """A family that lies in the box [low, high]^Z."""

    low: float = -1.0
    high: float = 1.0

    @model_validator(mode="after")
    def _is_a_box(self) -> Box:
        if not self.low < self.high:
            raise ValueError(f"a box has low < high, not {self.low:g} and {self.high:g}")
        return self


class Weight(NamedTuple):
    """One array of weights.

    scale: it starts uniform in `start` ± this. momentum: 0 for a weight that is trained; else a running moment, which
    every step moves by this share towards what its network reports of the batch. fixed: no step moves it.
    """

    shape: tuple[int, ...]
    scale: float
    start: float = 0.0
    momentum: float = 0.0
    fixed: bool = False

    @property
    def trained(self) -> bool:
        """Whether an optimiser moves it."""
        return not (self.momentum or self.fixed)


@dataclass(frozen=True)
class Network:
    """A network of a story: a spec, or a framework module, with the sizes its surroundings give it.

    `sizes` holds what the spec cannot know alone, by name: `vocabulary` V, `latent` Z, `features` H.
    """

    spec: Any
    sizes: Mapping[str, int] = field(default_factory=dict)

    @property
    def declared(self) -> bool:
        """Whether this is a spec (else a framework module, used as it is)."""
        return isinstance(self.spec, Spec)

    def initial_weights(self, name: str, seed: int) -> dict[str, np.ndarray]:
        """float64 weights for the network called `name`: the same on both engines for the same seed."""
        rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
        return {
            weight: one.start + rng.uniform(-one.scale, one.scale, one.shape)
            for weight, one in self.spec.layout(**self.sizes).items()
        }

    def running(self) -> dict[str, float]:
        """Weight → momentum, of the running moments."""
        return {weight: one.momentum for weight, one in self._layout().items() if one.momentum}

    def untrained(self) -> set[str]:
        """The weights that no optimiser moves."""
        return {weight for weight, one in self._layout().items() if not one.trained}

    def _layout(self) -> dict[str, Weight]:
        return self.spec.layout(**self.sizes) if self.declared else {}
