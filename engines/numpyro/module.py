"""What every realised spec is."""

from __future__ import annotations

from typing import Any, ClassVar

import equinox as eqx
from jax import Array


class Realised(eqx.Module):
    """A spec with its weights."""

    reads: ClassVar[tuple[str, ...]] = ()
    """Other networks of the pair that a call is handed by keyword, with their weights."""

    weights: dict[str, Array]
    spec: Any = eqx.field(static=True)
    precision: str = eqx.field(static=True, default="float32")
    sizes: tuple[tuple[str, int], ...] = eqx.field(static=True, default=())
    """What the surroundings give, by name; pairs, because static fields are hashed."""
