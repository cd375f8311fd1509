"""The linear-Gaussian state-space model, a dimension at a time: its evidence and smoother are known exactly.

    z_1 ~ N(0, q),   z_t ~ N(a z_{t-1}, q)        x_t ~ N(z_t, r)

a, q and r are vectors, one number for each dimension of the data.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import log
from typing import Any, Literal

from pydantic import Field, PositiveFloat

from .ppl import PPL
from .sequence import State, Step
from .spec import Network, Spec, Weight


class Dynamics(Spec):
    """a, log q and log r. Size from the surroundings: `width` D."""

    kind: Literal["dynamics"] = "dynamics"
    decay: float = Field(default=0.9, description="where a starts")
    state_variance: PositiveFloat = Field(default=1.0, description="where q starts")
    noise_variance: PositiveFloat = Field(default=1.0, description="where r starts")

    def layout(self, *, width: int) -> dict[str, Weight]:
        return {
            "decay": Weight((width,), 0.0, self.decay),
            "log_state_variance": Weight((width,), 0.0, log(self.state_variance)),
            "log_noise_variance": Weight((width,), 0.0, log(self.noise_variance)),
        }


class LinearGaussianModel(Spec):
    """The `[model]` table of a linear-Gaussian state-space model."""

    dynamics: Dynamics = Dynamics()

    def networks(self, width: int) -> dict[str, Network]:
        return {"dynamics": Network(self.dynamics, {"width": width})}


class LinearGaussianStep(Step):
    """`models.sequence.Step`; h_t is z_{t-1}, z_0 = 0."""

    def __init__(self, ppl: PPL, nets: Mapping[str, Any]) -> None:
        self.ppl = ppl
        self.a, self.q, self.r = ppl.module("dynamics", nets["dynamics"])()
        self.dim = self.a.shape[0]

    def start(self, shape: tuple[int, ...]) -> State:
        return self.ppl.zeros((*shape, self.dim))

    def prior(self, h: State) -> Any:
        return self.ppl.dist.Normal(self.a * h, self.q**0.5).to_event(1)

    def emission(self, h: State, v: Any) -> Any:
        return self.ppl.dist.Normal(v, self.r**0.5).to_event(1)

    def next(self, h: State, v: Any, inputs: None) -> State:
        return v
