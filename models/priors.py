"""Priors p(z)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveInt

from .spec import Spec


class StandardNormal(Spec):
    """p(z) = N(0, I), event shape (dim,)."""

    kind: Literal["standard_normal"] = "standard_normal"
    dim: PositiveInt = Field(default=32, description="Z, dimensions of the latent")


Prior = StandardNormal
