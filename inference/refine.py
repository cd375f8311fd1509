"""Semi-amortised variational inference: what the guide says of a datum, refined (Kim et al. 2018, algorithm 1)."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from ..engines.protocol import Refinement
from ..models.spec import Spec


class Refine(Spec):
    """`steps` K of gradient descent move each datum's λ_0 = W h, the parameters of its posterior, to λ_K, down its own
    negative ELBO with the step's KL weight; every gradient is from draws of its own, and of a norm of at most `clip`.
    The step's loss is at λ_K (Kim et al. 2018: K = 20, learning rate 1).

    backpropagate: through the refinement, with exact second derivatives. Otherwise the model is trained at λ_K held
    fixed and the guide at λ_0. Costs K + 1 passes of the model and back, and as much again and the K passes' memory
    where they are differentiated; validation and evaluation are at λ_0.
    """

    steps: PositiveInt = 20
    learning_rate: PositiveFloat = 1.0
    momentum: Annotated[NonNegativeFloat, Field(lt=1)] = 0.5
    clip: PositiveFloat = Field(default=5.0, allow_inf_nan=True, description="inf: no clipping")
    backpropagate: bool = True

    def refinement(self) -> Refinement:
        return Refinement(**self.model_dump())
