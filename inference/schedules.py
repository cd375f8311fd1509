"""Schedules: pure functions of the step, infinity included. β is a property of training, never inside a program."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from ..models.spec import Spec


class Constant(Spec):
    """value at every step."""

    kind: Literal["constant"] = "constant"
    value: NonNegativeFloat = 1.0

    def at(self, step: float) -> float:
        return self.value


class Linear(Spec):
    """From start to stop over `steps` steps after the first `wait`, then stop (Bowman et al. 2016; He et al. 2019)."""

    kind: Literal["linear"] = "linear"
    start: NonNegativeFloat = 0.0
    stop: NonNegativeFloat = 1.0
    steps: PositiveInt = Field(description="steps of the ramp")
    wait: NonNegativeInt = Field(default=0, description="steps at `start` before the ramp")

    def at(self, step: float) -> float:
        done = min(max(step - self.wait, 0) / self.steps, 1.0)
        return self.start + (self.stop - self.start) * done


class Logistic(Spec):
    """stop / (1 + exp(−rate (step − midpoint))) (Bowman et al. 2016, figure 2)."""

    kind: Literal["logistic"] = "logistic"
    midpoint: PositiveInt = Field(default=2500, description="x0, the step at half height")
    rate: PositiveFloat = Field(default=0.0025, description="k, per step")
    stop: NonNegativeFloat = 1.0

    def at(self, step: float) -> float:
        return self.stop * 0.5 * (1.0 + math.tanh(0.5 * self.rate * (step - self.midpoint)))


class Cyclical(Spec):
    """`cycles` ramps over `steps` steps: each rises for its first `ratio`, then holds `stop` (Fu et al. 2019).

    Cycle m starts at step ⌈m · steps / cycles⌉, so that the last one is complete when `cycles` does not divide `steps`;
    after `steps` the weight stays at `stop`.
    """

    kind: Literal["cyclical"] = "cyclical"
    steps: PositiveInt = Field(description="steps of all cycles together")
    cycles: PositiveInt = 4
    ratio: PositiveFloat = Field(default=0.5, le=1, description="share of a cycle that rises")
    start: NonNegativeFloat = 0.0
    stop: NonNegativeFloat = 1.0

    def at(self, step: float) -> float:
        if step >= self.steps:
            return self.stop
        cycle = step * self.cycles // self.steps
        first, after = (-(-place * self.steps // self.cycles) for place in (cycle, cycle + 1))
        rise = self.ratio * (after - first)
        return self.start + (self.stop - self.start) * min((step - first) / rise, 1.0)


class Cosine(Spec):
    """From start to stop along half a cosine over `steps` steps, then stop."""

    kind: Literal["cosine"] = "cosine"
    steps: PositiveInt
    start: NonNegativeFloat = 1.0
    stop: NonNegativeFloat = 0.0

    def at(self, step: float) -> float:
        done = min(step / self.steps, 1.0)
        return self.stop + (self.start - self.stop) * 0.5 * (1.0 + math.cos(math.pi * done))


def _number_is_constant(value: Any) -> Any:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return {"kind": "constant", "value": value} if number else value


Schedule = Annotated[
    Constant | Linear | Logistic | Cyclical | Cosine,
    Field(discriminator="kind"),
]
"""In a recipe a bare number is a constant schedule."""

NumberOrSchedule = Annotated[Schedule, BeforeValidator(_number_is_constant)]
