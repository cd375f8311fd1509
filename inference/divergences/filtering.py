"""Bounds on the evidence of a sequence by particle filters."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, PositiveInt, field_validator

from ...engines.filtering import Filtering
from ...engines.terms import Terms
from ...models.errors import BadInput
from ..schedules import Constant, NumberOrSchedule
from .base import Objectives


class FIVO(Objectives):
    """−E log Ẑ, Ẑ the evidence by a particle filter of S particles: the filtering variational objective, from below
    (Maddison et al. 2017; Le et al. 2018; Naesseth et al. 2018).

    E[Ẑ] = p(x); the estimate is unbiased for the bound of S particles, which need not grow with S as IWAE's does, but is
    far tighter on long sequences. A row is resampled after a step that leaves its effective sample size at or below
    `threshold` · S. S = 1 is the ELBO, sampled; resampling = "none" is IWAE. Costs S runs of the guide, of the model's
    prior and of its decoder, inside the loop over time.
    gradient: "biased" leaves out the score of the ancestors, as is usual, "reinforce" adds it and is noisy, "none" stops
    at every resampling.
    """

    bounds: ClassVar[str] = "below"
    weighs: ClassVar[bool] = True

    kind: Literal["fivo"] = "fivo"
    particles: PositiveInt = 4
    weight: NumberOrSchedule = Constant()
    resampling: Literal["multinomial", "systematic", "none"] = "multinomial"
    threshold: float = Field(default=0.5, gt=0, le=1, description="share of S; 1: after every step")
    gradient: Literal["biased", "reinforce", "none"] = "biased"

    @field_validator("weight")
    @classmethod
    def _of_one(cls, weight: Any) -> Any:
        if weight != Constant():
            raise ValueError("fivo weighs particles by p / q, and a weight inside would bound nothing: leave it at 1")
        return weight

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"evidence"})

    @property
    def filtering(self) -> Filtering:
        return Filtering(self.resampling, self.threshold, self.gradient)

    def on(self, engine: str, *, plate: str = "data", weight: float = 1.0) -> Any:
        """
        Raises:
            BadInput: always, for a stock SVI runs the programs as they are, without a filter.
        """
        raise BadInput(
            "fivo filters inside the loop over time of a pair of sequences, which a stock SVI does not: use fit"
        )

    def loss(self, terms: Terms, weight: Any) -> Any:
        assert terms.evidence is not None
        return -terms.evidence
