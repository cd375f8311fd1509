"""The guides of the linear-Gaussian state-space model.

    filtering    q(z_t | z_{t-1}, x_t) = N(w z_{t-1} + g x_t, s²), learned; at its best p(z_t | z_{t-1}, x_t)
    smoothing    q(z_t | z_{t-1}, x) = p(z_t | z_{t-1}, x_t … x_T), by the messages from the future: the ELBO is log p(x)
    prior        q = p(z_t | z_{t-1})

The message of x_t … x_T about z_t is exp(−λ_t z²/2 + η_t z) up to a factor:

    λ_t = 1/r + a² λ_{t+1} / (1 + q λ_{t+1}),   η_t = x_t / r + a η_{t+1} / (1 + q λ_{t+1}),   λ_{T+1} = η_{T+1} = 0

so that z_t given z_{t-1} and x_t … x_T has precision 1/q + λ_t and mean (a z_{t-1} / q + η_t) / (1/q + λ_t).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from ..models.linear_gaussian import LinearGaussianStep
from ..models.ppl import PPL
from ..models.spec import Network, Spec, Weight


class Gains(Spec):
    """w, g and log s². Size from the surroundings: `width` D."""

    kind: Literal["gains"] = "gains"

    def layout(self, *, width: int) -> dict[str, Weight]:
        return {
            "by_state": Weight((width,), 0.0, 0.5),
            "by_data": Weight((width,), 0.0, 0.5),
            "log_variance": Weight((width,), 0.0),
        }


class LinearGaussianGuide(Spec):
    """The `[guide]` table of a linear-Gaussian state-space model."""

    proposal: Literal["filtering", "smoothing", "prior"] = "smoothing"

    def networks(self, width: int) -> dict[str, Network]:
        learned = {"gains": Network(Gains(), {"width": width})}
        return {"filtering": learned, "smoothing": {"smoother": Network(Smoother())}, "prior": {}}[self.proposal]


class Smoother(Spec):
    """Says that the guide is the exact smoother; it has no weights."""

    kind: Literal["smoother"] = "smoother"


class LinearGaussianProposal:
    """`guides.sequence_guide.Proposal`: which of the three, the networks say."""

    def __init__(self, ppl: PPL, nets: Mapping[str, Any], step: LinearGaussianStep) -> None:
        self.ppl, self.step = ppl, step
        self.smoothing = "smoother" in nets
        self.gains = ppl.module("gains", nets["gains"])() if "gains" in nets else None

    def reading(self, x: Any, mask: Any, h: Any) -> Any:
        if self.smoothing:
            return self._messages(x, mask)
        return None if self.gains is None else x

    def law(self, h: Any, reading: Any = None) -> Any:
        if reading is None:
            return self.step.prior(h)
        if self.gains is not None:
            by_state, by_data, variance = self.gains
            return self.ppl.dist.Normal(by_state * h + by_data * reading, variance**0.5).to_event(1)
        dim = self.step.dim
        precision, shift = 1 / self.step.q + reading[..., :dim], reading[..., dim:]
        mean = (self.step.a * h / self.step.q + shift) / precision
        return self.ppl.dist.Normal(mean, precision**-0.5).to_event(1)

    def _messages(self, x: Any, mask: Any) -> Any:
        """[λ_t, η_t], (T, B, 2 D); a step outside the mask says nothing."""
        a, q, r = self.step.a, self.step.q, self.step.r
        real = mask[..., None] + self.ppl.zeros(tuple(x.shape))

        def backwards(message: Any, at: Any) -> tuple[Any, Any]:
            (precision, shift), (x, real) = message, at
            precision, shift = a**2 * precision / (1 + q * precision), a * shift / (1 + q * precision)
            precision, shift = precision + real / r, shift + real * x / r
            return (precision, shift), self.ppl.concatenate((precision, shift))

        zeros = self.ppl.zeros(tuple(x.shape[1:]))
        found = self.ppl.scan(backwards, (zeros, zeros), (self.ppl.flip(x), self.ppl.flip(real)))[1]
        return self.ppl.flip(found)
