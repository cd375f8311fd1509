"""Posterior families q(z | x)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveFloat

from ..models.spec import Spec, Weight


class DiagonalNormal(Spec):
    """q(z | x) = N(μ, diag σ²), [μ, log σ²] = W h, no bias. Sizes: `features` H, `latent` Z."""

    kind: Literal["diagonal_normal"] = "diagonal_normal"
    initial_scale: PositiveFloat = Field(default=0.01, description="W starts uniform in ± this (Li et al.: 0.01)")

    def layout(self, *, features: int, latent: int) -> dict[str, Weight]:
        return {"weight": Weight((2 * latent, features), self.initial_scale)}


Posterior = DiagonalNormal
