"""Likelihoods of vectors: p(x | f) given the features f of a decoder."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from pydantic import Field, PositiveInt

from .errors import BadInput
from .spec import Spec

FLOOR = 1e-4
"""Below every standard deviation that a softplus gives (Chung et al. 2015)."""

CORRELATION = 1 - 1e-4
"""Above every correlation."""


class BernoulliLikelihood(Spec):
    """x_d ~ Bernoulli(sigmoid(f_d)); x is 0 or 1."""

    kind: Literal["bernoulli"] = "bernoulli"

    def features(self, width: int) -> int:
        return width

    def bias(self, mean: np.ndarray) -> np.ndarray:
        """The features at which x has this mean (D,), clipped to [1e-4, 1 − 1e-4]."""
        share = np.clip(mean, 1e-4, 1 - 1e-4)
        return np.log(share) - np.log1p(-share)

    def refuse(self, x: np.ndarray) -> None:
        """
        Raises:
            BadInput: x has values that this likelihood does not.
        """
        if not ((x == 0) | (x == 1)).all():
            raise BadInput(
                f"model.likelihood.kind = 'bernoulli' is for x of 0 and 1, and here it goes from {x.min():g} to "
                f"{x.max():g}: choose the kind gaussian"
            )


class _Scaled(Spec):
    """A likelihood with standard deviations s of features f."""

    scale: Literal["exp", "softplus"] = Field(default="exp", description="s = exp(f/2), or softplus(f) + 0.0001")

    def _unit(self) -> float:
        """The feature at which s = 1."""
        return 0.0 if self.scale == "exp" else float(np.log(np.expm1(1 - FLOOR)))


class GaussianLikelihood(_Scaled):
    """x_d ~ N(m_d, s_d²), [m; f] the features, m through a sigmoid where the data lie in (0, 1).

    Kingma & Welling 2014, C.2, where f = log s².
    """

    kind: Literal["gaussian"] = "gaussian"
    bounded: bool = Field(default=False, description="whether m goes through a sigmoid")

    def features(self, width: int) -> int:
        return 2 * width

    def bias(self, mean: np.ndarray) -> np.ndarray:
        """The features at which x has this mean (D,) and variance 1."""
        return np.concatenate([mean, np.full_like(mean, self._unit())])

    def refuse(self, x: np.ndarray) -> None:
        """
        Raises:
            BadInput: x lies outside (0, 1), where the means are bounded.
        """
        if self.bounded and (x.min() < 0 or x.max() > 1):
            raise BadInput(
                f"model.likelihood.bounded = true is for x from 0 to 1, and here it goes from {x.min():g} to "
                f"{x.max():g}: leave it out"
            )


class GaussianMixtureLikelihood(_Scaled):
    """x ~ Σ_k π_k N(m_k, diag s_k²), [log π; m; f] the features, up to a constant in log π (Chung et al. 2015)."""

    kind: Literal["gaussian_mixture"] = "gaussian_mixture"
    components: PositiveInt = Field(default=20, description="K")

    def features(self, width: int) -> int:
        return self.components * (1 + 2 * width)

    def bias(self, mean: np.ndarray) -> np.ndarray:
        """The features at which x has this mean (D,) and variance 1 in every component."""
        count = self.components
        return np.concatenate([np.zeros(count), np.tile(mean, count), np.full(count * len(mean), self._unit())])

    def refuse(self, x: np.ndarray) -> None:
        """Every x will do."""


class StrokesLikelihood(_Scaled):
    """x = (pen, dx, dy): pen ~ Bernoulli(sigmoid(a)), (dx, dy) ~ Σ_k π_k N(m_k, s_k, ρ_k) of correlation ρ (Graves 2013).

    [a; log π; m; f; r] are the features, ρ = tanh(r), held below 0.9999 so that no density is infinite.
    """

    kind: Literal["strokes"] = "strokes"
    components: PositiveInt = Field(default=20, description="K")

    def features(self, width: int) -> int:
        return 1 + 6 * self.components

    def bias(self, mean: np.ndarray) -> np.ndarray:
        """The features at which x has this mean (3,), and its moves variance 1 and no correlation in every component."""
        count = self.components
        moves = [np.zeros(count), np.tile(mean[1:], count), np.full(2 * count, self._unit()), np.zeros(count)]
        return np.concatenate([BernoulliLikelihood().bias(mean[:1]), *moves])

    def refuse(self, x: np.ndarray) -> None:
        """
        Raises:
            BadInput: x (…, D) is not a pen and two moves.
        """
        pen = x[..., 0]
        if x.shape[-1] == 3 and ((pen == 0) | (pen == 1)).all():
            return
        what = (
            f"its first column goes from {pen.min():g} to {pen.max():g}" if x.shape[-1] == 3 else f"D = {x.shape[-1]}"
        )
        raise BadInput(
            f"model.likelihood.kind = 'strokes' is for x of three columns, pen (0 or 1), dx and dy, and here {what}: "
            "choose the kind gaussian_mixture"
        )


Likelihood = Annotated[
    BernoulliLikelihood | GaussianLikelihood | GaussianMixtureLikelihood | StrokesLikelihood,
    Field(discriminator="kind"),
]
