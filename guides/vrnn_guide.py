"""The guides of the VRNN: filtering, smoothing, or the prior itself.

    q(z_t | x, z_<t) = posterior(encoder([φ_x(x_t); h_t]))             filtering (Chung et al. 2015)
    q(z_t | x, z_<t) = posterior(encoder([φ_x(x_t); b_t; h_t]))        smoothing, b_t = network(φ_x(x_T) … φ_x(x_t))
    q(z_t | x, z_<t) = p(z_t | h_t)                                    prior

h_t is the model's own state. With `residual` the mean is the prior's plus the posterior's (Fraccaro et al. 2016).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, PositiveInt, model_validator

from ..models.mlp import MLP
from ..models.ppl import PPL
from ..models.spec import Network, Spec
from ..models.vrnn import VRNNModel, VRNNStep
from .encoders import Backward, LSTMBackward
from .posteriors import DiagonalNormal, Posterior, Residual


class VRNNGuide(Spec):
    """The `[guide]` table of a VRNN."""

    proposal: Literal["filtering", "smoothing", "prior"] = "filtering"
    residual: bool = Field(default=True, description="whether means are the prior's plus what the network gives")
    posterior: Posterior = DiagonalNormal()
    encoder: MLP = MLP(hidden=(), activation="relu", activate_outputs=True)
    features: PositiveInt = Field(default=32, description="what the encoder puts out")
    backward: Backward = LSTMBackward(hidden=32)

    @model_validator(mode="after")
    def _residual_of_a_normal(self) -> VRNNGuide:
        if self.residual and self.posterior.kind != "diagonal_normal":
            raise ValueError(
                f"residual = true adds to the mean of a diagonal_normal, and the posterior is {self.posterior.kind}: "
                "set residual = false"
            )
        return self

    def networks(self, model: VRNNModel) -> dict[str, Network]:
        if self.proposal == "prior":
            return {}
        smoothing = self.proposal == "smoothing"
        read = model.features + (self.backward.hidden if smoothing else 0)
        parts = {
            "encoder": Network(self.encoder, {"inputs": read + model.cell.hidden, "outputs": self.features}),
            "posterior": Network(self.posterior, {"features": self.features, "latent": model.prior.dim}),
        }
        parts |= {"backward": Network(self.backward, {"inputs": model.features})} if smoothing else {}
        return parts | ({"residual": Network(Residual())} if self.residual else {})


class VRNNProposal:
    """`guides.sequence_guide.Proposal` of the VRNN: which of the three, the networks say."""

    def __init__(self, ppl: PPL, nets: Mapping[str, Any], step: VRNNStep) -> None:
        self.ppl, self.step = ppl, step
        names = ("encoder", "posterior", "backward", "residual")
        self.net = {name: ppl.module(name, nets[name]) for name in names if name in nets}

    def reading(self, x: Any, mask: Any) -> Any:
        if not self.net:
            return None
        features = self.step.features(x)
        if "backward" in self.net:
            features = self.ppl.concatenate((features, self.net["backward"](features, mask)))
        reading, self.encode = self.net["encoder"].project(features)
        return reading

    def law(self, h: Any, reading: Any = None) -> Any:
        if reading is None:
            return self.step.prior(h)
        found = self.net["posterior"](self.encode(h[0], reading))
        return self.net["residual"](self.step.prior(h), found) if "residual" in self.net else found
