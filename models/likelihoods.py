"""Likelihoods of vectors: p(x | f) given the features f of a decoder."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from .errors import BadInput
from .spec import Spec


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


class GaussianLikelihood(Spec):
    """x_d ~ N(m_d, s_d²), [m; log s²] = f, m through a sigmoid where the data lie in (0, 1) (Kingma & Welling 2014, C.2)."""

    kind: Literal["gaussian"] = "gaussian"
    bounded: bool = Field(default=False, description="whether m goes through a sigmoid")

    def features(self, width: int) -> int:
        return 2 * width

    def bias(self, mean: np.ndarray) -> np.ndarray:
        """The features at which x has this mean (D,) and variance 1."""
        return np.concatenate([mean, np.zeros_like(mean)])

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


Likelihood = Annotated[BernoulliLikelihood | GaussianLikelihood, Field(discriminator="kind")]
