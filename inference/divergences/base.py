"""What every divergence and bound is: a small pure function of `Terms`, per datum; scales and masks stay outside."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import PositiveInt

from ...engines import load
from ...engines.filtering import Filtering
from ...engines.protocol import Objective
from ...engines.terms import Sides, Terms
from ...models.errors import BadInput
from ...models.spec import Spec
from ..schedules import Constant, NumberOrSchedule


class Objectives(Spec):
    """weight: of log q − log p of the latents (β), a schedule or a number. particles: S, draws from the guide.

    A subclass says in its docstring what it bounds and from which side, whether its estimate is biased, and its cost.
    """

    bounds: ClassVar[str] = "nothing"
    """Which side of log p(x) the negated loss is on at weight 1: "below", "above", or "nothing"."""
    weighs: ClassVar[bool] = False
    """Whether draws are weighed by p / q."""
    shorthand: ClassVar[str] = "particles"
    """The field that `KIND:VALUE` sets."""

    kind: str
    weight: NumberOrSchedule = Constant()
    particles: PositiveInt = 1

    @property
    def needs(self) -> frozenset[str]:
        """Fields of `Terms` beyond those always there."""
        return frozenset()

    @property
    def pathwise(self) -> bool:
        """Whether its gradient passes through the guide's draws."""
        return True

    @property
    def additive(self) -> bool:
        """Whether it is a sum over latent sites and data, so that a latent may be shared by all data."""
        return False

    @property
    def filtering(self) -> Filtering | None:
        """How its particles are resampled, where they are filtered."""
        return None

    def loss(self, terms: Terms, weight: Any) -> Any | Sides:
        """What training minimises, (B,) nats per datum; `Sides` where model and guide minimise different things."""
        raise NotImplementedError

    def reported(self, terms: Terms, weight: Any) -> Any:
        """(B,): the loss that is shown and selected by."""
        found = self.loss(terms, weight)
        return found.value if isinstance(found, Sides) else found

    def carried(self) -> dict[str, float]:
        """What the loop of `fit` carries from step to step, as it is before the first; empty where nothing adapts.

        Where it is not, `loss` gets a mapping for its weight: the weight as "weight", and what is carried beside it.
        """
        return {}

    def adapted(self, carried: Mapping[str, float], info: Mapping[str, float]) -> dict[str, float]:
        """`carried` after a step with this `info`: sums over the rows of its batches, as of `Terms.sums`."""
        return dict(carried)

    def objective(self) -> Objective:
        return Objective(self.loss, self.particles, self.needs, self.pathwise, self.additive, self.filtering)

    def on(self, engine: str, *, plate: str = "data", weight: float = 1.0) -> Any:
        """This divergence as the `loss=` of stock `pyro.infer.SVI` or `numpyro.infer.SVI`.

        Raises:
            BadInput: it carries something from step to step.
        """
        if self.carried():
            raise BadInput(
                f"{self.kind} carries its {', '.join(self.carried())} from step to step, which the stock SVI does not: "
                "use fit, or another divergence"
            )
        return load(engine).Loss(self.objective(), plate=plate, weight=weight)


def particles_first(value: Any) -> Any:
    """(S, B), also of a single draw's (B,)."""
    return value[None] if value.ndim == 1 else value
