"""Aggressive training of a guide that lags behind its model (He et al. 2019, algorithm 1)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from pydantic import PositiveInt, model_validator

from ..engines.protocol import Batch, Control, Info, Program, State
from ..models.errors import BadInput
from ..models.spec import Spec

GUIDE, MODEL = ("guide",), ("model",)


class Aggressive(Spec):
    """Before every step of the model's side, steps of the guide's side alone, each on a fresh random batch, until the
    mean loss per predicted word (per datum of arrays) of `check_every` of them is above that of those before, or
    `inner_steps` are done. Ends for good when the validation split's mutual information falls from one epoch's end to
    the next. A step costs up to 1 + `inner_steps` times a plain one, over a whole run 2 to 4 times (He et al. 2019).
    """

    inner_steps: PositiveInt = 100
    check_every: PositiveInt = 15

    @model_validator(mode="after")
    def _checks(self) -> Aggressive:
        if self.check_every > self.inner_steps:
            raise ValueError(
                f"check_every = {self.check_every} is never reached in {self.inner_steps} inner steps: "
                f"at most {self.inner_steps} would be right"
            )
        return self


class InnerLoop:
    """The guide's steps before one of the model's.

    Args:
        batches: in an order of their own. accumulate: batches to a step.
        losses: the values of an Info; it refuses those that are not finite.
    """

    def __init__(
        self,
        spec: Aggressive,
        program: Program,
        batches: Any,
        accumulate: int,
        losses: Callable[[Control, Info], dict[str, float]],
    ) -> None:
        self.spec, self.program, self.batches, self.accumulate, self.losses = spec, program, batches, accumulate, losses

    def run(self, state: State, control: Control, taken: int) -> tuple[State, int]:
        """taken: inner steps of the whole run so far; batches and noise are functions of it, so that a run goes on."""
        window: list[tuple[Info, int]] = []
        before, first = math.inf, taken
        while taken < first + self.spec.inner_steps:
            places = range(taken * self.accumulate, (taken + 1) * self.accumulate)
            batches = [self.batches.batch(place) for place in places]
            state, info = self.program.step(state, batches, control._replace(step=taken, sides=GUIDE))
            window.append((info, sum(map(_counted, batches))))
            taken += 1
            if (taken - first) % self.spec.check_every == 0:
                mean = self._mean(control, window)
                if mean > before:
                    return state, taken
                before, window = mean, []
        self._mean(control, window)
        return state, taken

    def _mean(self, control: Control, window: list[tuple[Info, int]]) -> float:
        """Losses are read only here: reading waits for the device."""
        losses = [self.losses(control, info)["objective"] for info, _ in window]
        return sum(losses) / max(1, sum(count for *_, count in window))


def refuse_one_side(program: Program, state: State, name: str) -> None:
    """BadInput unless both sides of the pair have parameters."""
    for side in (*MODEL, *GUIDE):
        if side not in program.sides(state).values():
            raise BadInput(
                f"fit.aggressive trains the {side}'s side by itself, and the pair {name!r} has no parameters there: "
                "leave it out"
            )


def _counted(batch: Batch) -> int:
    """Predicted words of the real rows; the rows where the data are arrays."""
    weight = batch["weight"]
    return int(batch["lengths"] @ weight if "lengths" in batch else weight.sum())
