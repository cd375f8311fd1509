"""Recurrent cells that read the data and a latent: h_{t+1} = cell([u_t; v_t], h_t).

u_t is known before the loop, v_t, which hangs on the latent of step t, is not: W [u_t; v_t] = W_u u_t + W_v v_t, and
`project` forms the first part for all steps at once.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from .decoders import recurrent_layout
from .spec import Spec, Weight


class _Cell(Spec):
    """Sizes from the surroundings: `inputs` and `latent`, the widths of u and v; without a latent v has none."""

    kind: str
    hidden: PositiveInt = Field(default=128, description="H, width of the recurrent state")

    def layout(self, *, inputs: int, latent: int) -> dict[str, Weight]:
        gates = {"lstm": 4, "gru": 3}[self.kind] * self.hidden
        bound = self.hidden**-0.5
        weights = {
            "weight_inputs": Weight((gates, inputs), bound),
            **({"weight_latent": Weight((gates, latent), bound)} if latent else {}),
            "weight_hh": Weight((gates, self.hidden), bound),
            "bias_ih": Weight((gates,), bound),
        }
        return weights if self.kind == "lstm" else weights | {"bias_hh": Weight((gates,), bound)}


class LSTMCell(_Cell):
    """The long short-term memory of Hochreiter & Schmidhuber 1997: gates i, f, g, o, and a state (h, c)."""

    kind: Literal["lstm"] = "lstm"


class GRUCell(_Cell):
    """The gated recurrent unit of Cho et al. 2014: gates r, z, n, and a state (h,)."""

    kind: Literal["gru"] = "gru"


Cell = Annotated[LSTMCell | GRUCell, Field(discriminator="kind")]


class GRULayer(Spec):
    """d_{t+1} = GRU(u_t, d_t): a recurrence over the data alone. Size from the surroundings: `inputs`, the width of u."""

    kind: Literal["gru_layer"] = "gru_layer"
    hidden: PositiveInt = Field(default=128, description="width of d")

    def layout(self, *, inputs: int) -> dict[str, Weight]:
        return recurrent_layout("gru", inputs, self.hidden, self.hidden**-0.5)
