"""What every realised spec is."""

from __future__ import annotations

from typing import Any, ClassVar

import equinox as eqx
import numpyro
from jax import Array, lax

from ...models.spec import Network


class Realised(eqx.Module):
    """A spec with its weights."""

    reads: ClassVar[tuple[str, ...]] = ()
    """Other networks of the pair that a call is handed by keyword, with their weights."""

    weights: dict[str, Array]
    spec: Any = eqx.field(static=True)
    precision: str = eqx.field(static=True, default="float32")
    sizes: tuple[tuple[str, int], ...] = eqx.field(static=True, default=())
    """What the surroundings give, by name; pairs, because static fields are hashed."""

    @property
    def running(self) -> bool:
        """Whether some weights are running moments."""
        return bool(Network(self.spec, dict(self.sizes)).running())

    def report(self, **moments: Array) -> None:
        """What the running moments of these names are of this batch: of several passes over it, the first counts."""
        for name, moment in moments.items():
            numpyro.deterministic(name, lax.stop_gradient(moment))
