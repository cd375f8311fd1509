"""Priors p(F | n) of what a decoder attends to: random measures, or vectors, for a sentence of n words.

Every draw is packed as (K, p + 1): log π_k, or 0 of a plain vector, before the location z_k. Sentences differ in how many
of the K places take part.
"""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from .spec import Spec, Support, Weight, kind_unless_said

NEVER = -1e30
"""A log-probability of what does not occur: finite, and its exponential is 0."""


class MeasurePriorSpec(Spec):
    """What these priors say of themselves."""

    support: ClassVar[Support]
    """Where its draws lie."""
    weighted: ClassVar[bool] = False
    """Whether atoms have weights; plain attention reads those that have none."""
    by_length: ClassVar[bool] = True
    """Whether its size hangs on n."""

    kind: str
    dim: PositiveInt = Field(default=64, le=100_000, description="p, dimensions of a vector")

    def atoms(self, words: int) -> int:
        """K, places of a draw for a sentence of so many words."""
        raise NotImplementedError


class DirichletProcessPrior(MeasurePriorSpec):
    """F ~ DP(N(loc, scale² I), B) by K₀ = places · (n + 1) atoms, B = pseudo_count + increment · n (Henderson & Fehr
    2023, §3): π ~ Dir(B / K₀, …), z_k ~ N(loc, scale² I).

    empirical: means and variances of the p coordinates, in place of loc and scale, and the unit that pseudo-counts are
        counted in are weights that no step moves (Fehr & Henderson 2024). `regularised` fills them from data, and `fit`
        takes no such prior.
    """

    support: ClassVar[Support] = "measure"
    weighted: ClassVar[bool] = True

    kind: Literal["dirichlet_process"] = "dirichlet_process"
    pseudo_count: PositiveFloat = Field(default=1.0, description="α^p, of the prior component")
    increment: NonNegativeFloat = Field(default=1.0, description="α^Δ, for each word: the conditional prior")
    loc: float = 0.0
    scale: PositiveFloat = 1.0
    empirical: bool = False
    places: PositiveInt = Field(default=1, description="κ, atoms for each component")

    @model_validator(mode="after")
    def _one_law(self) -> DirichletProcessPrior:
        if self.empirical and (self.loc, self.scale) != (0.0, 1.0):
            raise ValueError("the locations of an empirical prior are weights: leave loc and scale out")
        return self

    def atoms(self, words: int) -> int:
        return self.places * (words + 1)

    def layout(self) -> dict[str, Weight]:
        if not self.empirical:
            return {}
        return {
            "loc": Weight((self.dim,), 0.0, fixed=True),
            "log_variance": Weight((self.dim,), 0.0, fixed=True),
            "log_pseudo_count": Weight((), 0.0, fixed=True),
        }


class NormalVectorsPrior(MeasurePriorSpec):
    """N(0, I) at ⌈share · n⌉ of the n places, evenly spread: a Gaussian for each word (VT), or for some (VTS)."""

    support: ClassVar[Support] = "vectors"

    kind: Literal["normal_vectors"] = "normal_vectors"
    share: float = Field(default=1.0, gt=0, le=1)

    def atoms(self, words: int) -> int:
        return len(self.kept(words))

    def kept(self, steps: int) -> list[int]:
        """The words that have a vector, of `steps` words."""
        ends = [math.ceil(place * self.share - 1e-9) for place in range(steps + 1)]
        return [place for place in range(steps) if ends[place + 1] > ends[place]]


class PooledNormalPrior(MeasurePriorSpec):
    """One vector, N(0, I) (VTP)."""

    support: ClassVar[Support] = "pooled"
    by_length: ClassVar[bool] = False

    kind: Literal["pooled_normal"] = "pooled_normal"

    def atoms(self, words: int) -> int:
        return 1


class LengthLaw(Spec):
    """p(n), n = 1 … longest, the share of the training sentences with n words and end mark, each length counted once more.

    `fit` counts them; elsewhere the lengths, and 0, are equally likely until weights are loaded.
    """

    kind: Literal["lengths"] = "lengths"
    longest: PositiveInt = 128

    def layout(self) -> dict[str, Weight]:
        return {"log_shares": Weight((self.longest + 1,), 0.0, fixed=True)}

    def log_shares(self, lengths: np.ndarray) -> np.ndarray:
        """(longest + 1,) of lengths (N,) in nats, by their numbers n."""
        counts = np.bincount(lengths, minlength=self.longest + 1) + 1.0
        return np.append(NEVER, np.log(counts[1:] / counts[1:].sum()))


MeasurePrior = Annotated[
    DirichletProcessPrior | NormalVectorsPrior | PooledNormalPrior,
    Field(discriminator="kind"),
    kind_unless_said("dirichlet_process"),
]
