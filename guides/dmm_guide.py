"""The guides of the deep Markov model: smoothing, filtering, or the prior itself.

q(z_t | z_{t-1}, x) = posterior(½ (tanh(W z_{t-1} + b) + e_t))

smoothing    e_t = b_t, a recurrent network over x_T … x_t (Krishnan et al. 2017, ST-R)
filtering    e_t = reader(x_t)
prior        q = p(z_t | z_{t-1})
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from ..models.dmm import DMMModel, DMMStep
from ..models.mlp import MLP
from ..models.ppl import PPL
from ..models.spec import Network, Spec
from .encoders import Backward, LSTMBackward
from .posteriors import DiagonalNormal, Posterior


class DMMGuide(Spec):
    """The `[guide]` table of a deep Markov model; all of it is as wide as `backward.hidden`."""

    proposal: Literal["smoothing", "filtering", "prior"] = "smoothing"
    posterior: Posterior = DiagonalNormal()
    backward: Backward = Field(default=LSTMBackward(hidden=200), description="b_t")
    reader: MLP = Field(default=MLP(hidden=(), activate_outputs=True), description="of x_t, where q filters")

    def networks(self, model: DMMModel, width: int) -> dict[str, Network]:
        if self.proposal == "prior":
            return {}
        features, latent = self.backward.hidden, model.prior.dim
        reads = {
            "smoothing": {"backward": Network(self.backward, {"inputs": width})},
            "filtering": {"reader": Network(self.reader, {"inputs": width, "outputs": features})},
        }[self.proposal]
        combiner = MLP(hidden=(), activation="tanh", activate_outputs=True)
        return reads | {
            "combiner": Network(combiner, {"inputs": latent, "outputs": features}),
            "posterior": Network(self.posterior, {"features": features, "latent": latent}),
        }


class DMMProposal:
    """`guides.sequence_guide.Proposal` of the deep Markov model: which of the three, the networks say."""

    def __init__(self, ppl: PPL, nets: Mapping[str, Any], step: DMMStep) -> None:
        self.step = step
        names = ("backward", "reader", "combiner", "posterior")
        self.net = {name: ppl.module(name, nets[name]) for name in names if name in nets}

    def reading(self, x: Any, mask: Any, h: Any) -> Any:
        if "backward" in self.net:
            return self.net["backward"](x, mask)
        return self.net["reader"](x) if "reader" in self.net else None

    def law(self, h: Any, reading: Any = None) -> Any:
        if reading is None:
            return self.step.prior(h)
        return self.net["posterior"](0.5 * (self.net["combiner"](h) + reading))
