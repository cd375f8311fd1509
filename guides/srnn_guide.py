"""The guides of the SRNN: smoothing, filtering, or the prior itself.

    q(z_t | x, z_<t) = posterior(encoder([d_t; x_t; b_t; z_{t-1}]))    smoothing, b_t = network([d; x]_T … [d; x]_t)
    q(z_t | x, z_<t) = posterior(encoder([d_t; x_t; z_{t-1}]))         filtering
    q(z_t | x, z_<t) = p(z_t | z_{t-1}, d_t)                           prior

In Fraccaro et al. (2016) the encoder reads d_t and x_t through b_t alone; `residual` is their Res_q.
"""

from __future__ import annotations

from typing import Any, Literal

from ..models.srnn import SRNNStep
from .step_guide import StepGuide, StepProposal


class SRNNGuide(StepGuide):
    """The `[guide]` table of an SRNN."""

    proposal: Literal["filtering", "smoothing", "prior"] = "smoothing"


class SRNNProposal(StepProposal):
    """`guides.sequence_guide.Proposal` of the SRNN."""

    step: SRNNStep

    def read(self, x: Any, h: Any) -> Any:
        return self.ppl.concatenate((self.step.past(x, h), x))

    def state(self, h: Any) -> Any:
        return h[..., self.step.hidden :]
