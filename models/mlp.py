"""A multilayer perceptron, for stories whose data are vectors."""

from __future__ import annotations

import itertools
from typing import Literal

from pydantic import Field, PositiveInt

from .errors import BadInput
from .spec import Spec, Weight


class MLP(Spec):
    """y = W_L a(… a(W_1 x + b_1) …) + b_L, or a of that, over the last axis: (…, inputs) to (…, outputs)."""

    kind: Literal["mlp"] = "mlp"
    inputs: PositiveInt | None = Field(default=None, description="None: what the surroundings give")
    outputs: PositiveInt | None = Field(default=None, description="None: what the surroundings ask for")
    hidden: tuple[PositiveInt, ...] = Field(default=(128,), strict=False, description="widths of the hidden layers")
    activation: Literal["tanh", "relu", "softplus"] = "tanh"
    activate_outputs: bool = Field(default=False, description="whether the outputs are activated too")

    def layout(self, inputs: int | None = None, outputs: int | None = None) -> dict[str, Weight]:
        ends = (self.inputs or inputs, self.outputs or outputs)
        if None in ends:
            raise BadInput("an mlp by itself has no size: give it inputs and outputs")
        widths: tuple[int, ...] = (ends[0], *self.hidden, ends[1])  # pyright: ignore[reportAssignmentType]
        weights = {}
        for layer, (fan_in, fan_out) in enumerate(itertools.pairwise(widths)):
            bound = fan_in**-0.5
            weights[f"weight_{layer}"] = Weight((fan_out, fan_in), bound)
            weights[f"bias_{layer}"] = Weight((fan_out,), bound)
        return weights
