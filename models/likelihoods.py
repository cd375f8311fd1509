"""Likelihoods of vectors: p(x | f) given the features f of a decoder."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from .spec import Spec


class BernoulliLikelihood(Spec):
    """x_d ~ Bernoulli(sigmoid(f_d)); x is 0 or 1."""

    kind: Literal["bernoulli"] = "bernoulli"

    def features(self, width: int) -> int:
        return width


class GaussianLikelihood(Spec):
    """x_d ~ N(m_d, s_d²), [m; log s²] = f, m through a sigmoid where the data lie in (0, 1) (Kingma & Welling 2014, C.2)."""

    kind: Literal["gaussian"] = "gaussian"
    bounded: bool = Field(default=False, description="whether m goes through a sigmoid")

    def features(self, width: int) -> int:
        return 2 * width


Likelihood = Annotated[BernoulliLikelihood | GaussianLikelihood, Field(discriminator="kind")]
