"""What the guides of the VRNN and of the SRNN share: q(z_t | x, z_<t) by networks, from what is read of x and of h_t.

    filtering    posterior(encoder([r_t; s_t]))
    smoothing    posterior(encoder([r_t; b_t; s_t])),   b_t a recurrent network over r_T … r_t
    prior        p(z_t | h_t)

r_t is what is read of x up to t, s_t a part of the model's own state h_t. With `residual` the mean is the prior's plus
the posterior's (Fraccaro et al. 2016).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, PositiveInt, model_validator

from ..models.mlp import MLP
from ..models.ppl import PPL
from ..models.sequence import Step
from ..models.spec import Network, Spec
from .encoders import Backward, LSTMBackward
from .posteriors import DiagonalNormal, Posterior, Residual


class StepGuide(Spec):
    """The `[guide]` table."""

    proposal: Literal["filtering", "smoothing", "prior"] = "filtering"
    residual: bool = Field(default=True, description="whether means are the prior's plus what the network gives")
    posterior: Posterior = DiagonalNormal()
    encoder: MLP = MLP(hidden=(), activation="relu", activate_outputs=True)
    features: PositiveInt = Field(default=32, description="what the encoder puts out")
    backward: Backward = LSTMBackward(hidden=32)

    @model_validator(mode="after")
    def _residual_of_a_normal(self) -> StepGuide:
        if self.residual and self.posterior.kind != "diagonal_normal":
            raise ValueError(
                f"residual = true adds to the mean of a diagonal_normal, and the posterior is {self.posterior.kind}: "
                "set residual = false"
            )
        return self

    def networks(self, *, read: int, state: int, latent: int) -> dict[str, Network]:
        """read, state: the widths of r and s."""
        if self.proposal == "prior":
            return {}
        smoothing = self.proposal == "smoothing"
        inputs = read + state + (self.backward.hidden if smoothing else 0)
        parts = {
            "encoder": Network(self.encoder, {"inputs": inputs, "outputs": self.features}),
            "posterior": Network(self.posterior, {"features": self.features, "latent": latent}),
        }
        parts |= {"backward": Network(self.backward, {"inputs": read})} if smoothing else {}
        return parts | ({"residual": Network(Residual())} if self.residual else {})


class StepProposal:
    """`guides.sequence_guide.Proposal`: which of the three, the networks say."""

    def __init__(self, ppl: PPL, nets: Mapping[str, Any], step: Step) -> None:
        self.ppl, self.step = ppl, step
        names = ("encoder", "posterior", "backward", "residual")
        self.net = {name: ppl.module(name, nets[name]) for name in names if name in nets}

    def read(self, x: Any, h: Any) -> Any:
        """r_1 … r_T (T, B, R) of x (T, B, D) and h_1."""
        raise NotImplementedError

    def state(self, h: Any) -> Any:
        """s_t of h_t."""
        raise NotImplementedError

    def reading(self, x: Any, mask: Any, h: Any) -> Any:
        if not self.net:
            return None
        found = self.read(x, h)
        if "backward" in self.net:
            found = self.ppl.concatenate((found, self.net["backward"](found, mask)))
        reading, self.encode = self.net["encoder"].project(found)
        return reading

    def law(self, h: Any, reading: Any = None) -> Any:
        if reading is None:
            return self.step.prior(h)
        found = self.net["posterior"](self.encode(self.state(h), reading))
        return self.net["residual"](self.step.prior(h), found) if "residual" in self.net else found
