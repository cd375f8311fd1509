"""Consistency regularisation: a datum and its augmentation have like posteriors (Sinha & Dieng 2021)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import numpy as np
from pydantic import Field, NonNegativeFloat

from ..data.batches import uniform
from ..data.tokenisers import EOS, UNK
from ..engines.consistency import AUGMENTED
from ..engines.protocol import Batch
from ..engines.seeds import derive
from ..guides import Pair
from ..models.errors import BadInput
from ..models.spec import Spec


class Consistency(Spec):
    """Minimises loss(x) + loss(t(x)) + weight · KL(q(z | t(x)) ‖ q(z | x)), in both posteriors' parameters (Sinha &
    Dieng 2021, equation 6: their bounds less λ times this divergence, maximised).

    t(x) of a sentence: each word the encoder reads is unk with probability `word_dropout`; what is decoded stays. Of a
    vector x: Gaussian noise of standard deviation `noise` added, or each entry flipped with that probability where the
    data are 0 or 1; read and reconstructed. The KL is analytic where registered, else from one draw. Twice a plain
    loss in value and somewhat more in cost; what is validated is the plain one.
    """

    weight: NonNegativeFloat = Field(default=0.1, description="λ")
    word_dropout: float | None = Field(default=None, ge=0, le=1, description="of sentences")
    noise: float | None = Field(default=None, ge=0, description="of vectors")

    def misfit(self, pair: Pair, posterior: Any) -> str | None:
        """Why a pair cannot have it; None where it can."""
        if pair.guide is None:
            return f"fit.consistency compares posteriors, and the pair {pair.name!r} has no latent: leave it out"
        wanted, other = ("word_dropout", "noise") if pair.text else ("noise", "word_dropout")
        if getattr(self, wanted) is None or getattr(self, other) is not None:
            data = "sentences" if pair.text else "arrays"
            return f"fit.consistency augments {data} by its {wanted}, and by nothing else: give that one"
        if posterior is not None and not posterior.fixed_support:
            return (
                f"fit.consistency needs KL(q(z | t(x)) ‖ q(z | x)), infinite for the posterior {posterior.kind!r}, "
                "whose support moves with x: use another, diagonal_normal say"
            )
        return None


class Views:
    """`batches` whose every batch holds t(x) as well: a function of seed and step.

    binary: whether x holds zeros and ones.
    """

    def __init__(self, spec: Consistency, batches: Any, seed: int, binary: bool) -> None:
        self.spec, self.batches, self.seed, self.binary = spec, batches, derive(seed, "view"), binary
        self.shapes, self.steps_per_epoch = batches.shapes, batches.steps_per_epoch
        self.data_size = batches.data_size
        if binary and (spec.noise or 0.0) > 1:
            raise BadInput(
                f"fit.consistency.noise = {spec.noise:g} is the probability of a flip here: at most 1 is right"
            )

    def batch(self, step: int) -> dict[str, np.ndarray]:
        return self._viewed(self.batches.batch(step), step)

    def stream(self, start: int, stop: int | None = None) -> Iterator[dict[str, np.ndarray]]:
        with closing(self.batches.stream(start, stop)) as stream:
            for step, batch in zip(itertools.count(start), stream, strict=False):
                yield self._viewed(batch, step)

    def _viewed(self, batch: Batch, step: int) -> dict[str, np.ndarray]:
        name = "x" if self.spec.word_dropout is None else "tokens"
        if name not in batch:
            raise BadInput(f"fit.consistency augments an array x, and the data have {', '.join(batch)}: leave it out")
        return {**batch, AUGMENTED + name: self._augmented(batch[name], step)}

    def _augmented(self, x: np.ndarray, step: int) -> np.ndarray:
        if self.spec.word_dropout is not None:
            return np.where(
                (x > EOS) & (uniform(self.seed, step, x.shape) < self.spec.word_dropout), x.dtype.type(UNK), x
            )
        noise = self.spec.noise or 0.0
        if self.binary:
            return np.where(uniform(self.seed, step, x.shape) < noise, 1 - x, x).astype(x.dtype)
        key = np.array([self.seed, step], np.uint64)
        return x + noise * np.random.Generator(np.random.Philox(key=key)).standard_normal(x.shape, np.float32)


def is_binary(dataset: Any, likelihood: Any) -> bool:
    """Whether the array x is of zeros and ones. BadInput where a Bernoulli likelihood has other numbers."""
    x = getattr(dataset, "splits", {"train": {}})["train"].get("x")
    binary = getattr(dataset, "binarise", False) or (x is not None and bool(np.isin(x, (0, 1)).all()))
    if x is not None and not binary and getattr(likelihood, "kind", None) == "bernoulli":
        raise BadInput(
            "fit.consistency flips zeros and ones under a bernoulli likelihood, and x has numbers between them: "
            "set data.binarise = true"
        )
    return binary
