"""The guides of the VRNN: filtering, smoothing, or the prior itself.

    q(z_t | x, z_<t) = posterior(encoder([φ_x(x_t); h_t]))             filtering (Chung et al. 2015)
    q(z_t | x, z_<t) = posterior(encoder([φ_x(x_t); b_t; h_t]))        smoothing, b_t = network(φ_x(x_T) … φ_x(x_t))
    q(z_t | x, z_<t) = p(z_t | h_t)                                    prior

h_t is the model's own state.
"""

from __future__ import annotations

from typing import Any

from ..models.vrnn import VRNNStep
from .step_guide import StepGuide, StepProposal


class VRNNGuide(StepGuide):
    """The `[guide]` table of a VRNN."""


class VRNNProposal(StepProposal):
    """`guides.sequence_guide.Proposal` of the VRNN."""

    step: VRNNStep

    def read(self, x: Any, h: Any) -> Any:
        return self.step.features(x)

    def state(self, h: Any) -> Any:
        return h[0]
